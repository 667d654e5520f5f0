"""The stored record of each call, and queries over it.

While the database is away calls go on: their rows wait in files (`Spool`) and are written once it
answers, at the latest at the next start.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, select, text, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, TimeoutError
from sqlalchemy.orm import Session

import schema
from call import Call, Disposition, EndedBy
from schema import CallerRow, CallRow, ToolCallRow, TurnRow, Work
from spool import Item, Spool

__all__ = ["CallRow", "Records", "RecordsUnavailable", "Repeated", "Work"]

logger = logging.getLogger(__name__)

AWAY = (DBAPIError, TimeoutError)
REPLAY_S = 4.0
"""After which the rest of what waits in files is left for the next time: leases must be renewed."""

TRUNCATE_S = 5.0
"""Longest wait for others to be done with SQLite's log."""


class Repeated(Exception):
    """A call of that id has a row already."""


class RecordsUnavailable(Exception):
    """The records database does not answer."""


class Records:
    """One records database; thread-safe, one session per operation."""

    def __init__(
        self,
        url: str,
        *,
        spool: Path,
        lease_s: float = 15.0,
        store_transcripts: bool = False,
        version: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self.engine: Engine = schema.connect(url)
        self._spool = Spool(spool)
        self._lease = timedelta(seconds=lease_s)
        self._store_transcripts = store_transcripts
        self._version = version
        self._clock = clock

    def migrate(self) -> None:
        """Bring the schema up to date, one worker at a time, and write what waited in files."""
        schema.migrate(self.engine, self._spool.folder.parent)
        self._replay()

    def dispose(self) -> None:
        self.engine.dispose()

    # Calls

    def open(self, call: Call) -> None:
        """Insert the call's row, leased; Repeated if there is one of that id."""
        row = self._row(call) | {"lease_until": self._clock() + self._lease}
        try:
            with Session(self.engine) as session, session.begin():
                session.add(CallRow(**row))
        except IntegrityError:
            raise Repeated(call.id) from None
        except AWAY:
            self._spool.put(call.id, row)

    def save(self, call: Call) -> None:
        """Write all of the call; with an ending, close its row. The first ending stands."""
        row = self._row(call)
        try:
            self._write(row)
        except AWAY:
            self._spool.put(call.id, row)

    def _row(self, call: Call) -> dict[str, Any]:
        ending, request = call.ending, call.request
        return {
            "id": call.id,
            "job_id": call.job_id,
            "room": call.room,
            "worker_id": call.worker_id,
            "campaign_id": request.campaign_id or None if request else None,
            "contact_id": request.contact_id or None if request else None,
            "direction": str(call.direction),
            "number": call.number,
            "dialed_number": call.dialed_number,
            "dispatched_at": call.dispatched_at,
            "ringing_at": call.ringing_at,
            "answered_at": call.answered_at,
            "ended_at": call.ended_at,
            "disposition": str(ending.disposition) if ending else None,
            "message_left": ending.message_left if ending else False,
            "ended_by": str(ending.ended_by) if ending else None,
            "reason": ending.reason if ending else "",
            "sip_status": ending.sip_status if ending else None,
            "destination": call.destination,
            "turns": call.turns,
            "interruptions": call.interruptions,
            "reply_p50_ms": statistics.median(call.reply_ms) if call.reply_ms else None,
            "reply_p95_ms": _percentile_95(call.reply_ms),
            "usage": call.usage,
            "errors": call.errors,
            "version": self._version,
        }

    def _write(self, row: dict[str, Any]) -> None:
        with Session(self.engine) as session, session.begin():
            self._put(session, row)

    def _put(self, session: Session, row: dict[str, Any], *, waited: bool = False) -> None:
        found = session.get(CallRow, row["id"], with_for_update=True)
        if found is None:
            session.add(CallRow(**row))
            return
        # Another worker closed the call while its real ending waited.
        is_better = waited and row["disposition"] and found.reason == schema.WORKER_LOST
        if found.disposition is None or is_better:
            for name, value in row.items():
                setattr(found, name, value)
            if row["disposition"]:
                found.lease_until = None

    def add_tool_call(self, call_id: str, name: str, code: str, ms: float) -> None:
        """Note one use of a tool: its result code, and how long it took (ms)."""
        self._add({"call_id": call_id, "at": self._clock(), "name": name, "code": code, "ms": ms})

    def add_turn(
        self, call_id: str, speaker: str, text: str, *, is_interrupted: bool = False
    ) -> None:
        """Note what was said, if transcripts are stored."""
        if self._store_transcripts:
            said = {"speaker": speaker, "text": text, "is_interrupted": is_interrupted}
            self._add({"call_id": call_id, "at": self._clock()} | said)

    def _add(self, row: dict[str, Any]) -> None:
        try:
            with Session(self.engine) as session, session.begin():
                session.add(_kind(row)(**row))
        except AWAY:
            self._spool.append(row["call_id"], row)

    def _replay(self) -> None:
        """Write what waited; what can't be written holds up neither the rest nor the caller."""
        until = time.monotonic() + REPLAY_S
        with self._spool.replaying() as is_ours:
            for item in self._spool.items() if is_ours else []:
                if time.monotonic() > until:
                    return
                try:
                    self._write_item(item)
                    self._spool.remove(item)
                except (DataError, TypeError, ValueError) as error:
                    self._spool.set_aside(item.path, error)
                except AWAY as error:
                    logger.warning("a record waits in a file: %s", type(error).__name__)

    def _write_item(self, item: Item) -> None:
        """All of it or nothing, and nothing twice."""
        with Session(self.engine) as session, session.begin():
            if item.row:
                self._put(session, item.row, waited=True)
                session.flush()
            for row in item.added:
                if "kind" in row:
                    self._add_waiting_work(session, Work(**row))
                else:
                    self._add_once(session, _kind(row), row)

    def _add_waiting_work(self, session: Session, work: Work) -> None:
        if not self._is_forgotten(session, work.number, work.created_at):
            self._add_work(session, work)

    def _add_once(self, session: Session, kind: Any, row: dict[str, Any]) -> None:
        call = session.get(CallRow, row["call_id"])
        number = call.number if call else None
        if kind is TurnRow and number and self._is_forgotten(session, number, row["at"]):
            return
        if session.scalars(select(kind).filter_by(**row)).first() is None:
            session.add(kind(**row))

    # Leases

    def renew(self, worker_id: str) -> None:
        """Renew the leases of the worker's open calls, and write what waited in files."""
        self._replay()
        mine = (CallRow.worker_id == worker_id) & CallRow.disposition.is_(None)
        with Session(self.engine) as session, session.begin():
            until = self._clock() + self._lease
            session.execute(update(CallRow).where(mine).values(lease_until=until))

    def expired(self) -> list[CallRow]:
        """Open calls whose worker has not renewed their lease."""
        with Session(self.engine) as session:
            return list(session.scalars(select(CallRow).where(self._is_expired())))

    def close_lost(self, call_id: str) -> bool:
        """Close an expired call as `failed` (`worker lost`); True for the one that did it."""
        lost = (CallRow.id == call_id) & self._is_expired()
        values = {
            "disposition": str(Disposition.FAILED),
            "ended_by": str(EndedBy.SYSTEM),
            "reason": schema.WORKER_LOST,
            "ended_at": self._clock(),
            "lease_until": None,
        }
        with Session(self.engine) as session, session.begin():
            done = session.execute(update(CallRow).where(lost).values(**values))
            return bool(getattr(done, "rowcount", 0))

    def lost_rooms(self, within_s: float = 3600.0) -> set[str]:
        """Rooms of calls that lost their worker in the last `within_s` seconds."""
        since = self._clock() - timedelta(seconds=within_s)
        lost = (CallRow.reason == schema.WORKER_LOST) & (CallRow.ended_at > since)
        with Session(self.engine) as session:
            return set(session.scalars(select(CallRow.room).where(lost)))

    def _is_expired(self) -> Any:
        return CallRow.disposition.is_(None) & (CallRow.lease_until < self._clock())

    # Queries

    def recent(self, limit: int) -> list[CallRow]:
        """The latest calls, newest first, without what was said in them."""
        newest = select(CallRow).order_by(CallRow.dispatched_at.desc()).limit(limit)
        with Session(self.engine) as session:
            return list(session.scalars(newest))

    def get(self, call_id: str) -> CallRow | None:
        """One call with its tools and turns."""
        with Session(self.engine) as session:
            row = session.get(CallRow, call_id)
            if row:
                row.tool_calls = self._of(session, ToolCallRow, call_id)
                row.said = self._of(session, TurnRow, call_id)
            return row

    def _of(self, session: Session, kind: Any, call_id: str) -> list[Any]:
        return list(session.scalars(select(kind).filter_by(call_id=call_id).order_by(kind.id)))

    # Callers, and work on their memories

    @contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except AWAY as error:
            raise RecordsUnavailable(type(error).__name__) from error

    def facts(self, number: str) -> list[str]:
        """What is known about a caller; [] if nothing. Raises RecordsUnavailable, as all below."""
        with self._session() as session:
            row = session.get(CallerRow, number)
            return list(row.facts) if row else []

    def set_facts(self, number: str, facts: list[str]) -> None:
        """Replace what is known about a caller."""
        with self._session() as session:
            session.merge(CallerRow(number=number, facts=facts, updated_at=self._clock()))

    def forget(self, work: Work) -> None:
        """Delete the caller's row, what they said in calls, and their work until this, together."""
        calls = select(CallRow.id).filter_by(number=work.number)
        until_this = schema.WorkRow.created_at <= work.created_at
        with self._session() as session:
            session.execute(delete(CallerRow).filter_by(number=work.number))
            session.execute(delete(TurnRow).where(TurnRow.call_id.in_(calls)))
            session.execute(delete(schema.WorkRow).filter_by(number=work.number).where(until_this))

    def add_work(self, work: Work) -> None:
        """Commit work to be done; an id that is there already is left alone."""
        with self._session() as session:
            self._add_work(session, work)

    def leave_work(self, work: Work) -> bool:
        """Like `add_work`; False if the database is away, and the work waits with its call."""
        try:
            self.add_work(work)
        except RecordsUnavailable:
            self._spool.append(work.call_id, asdict(work))
            return False
        return True

    def _add_work(self, session: Session, work: Work) -> None:
        if session.get(schema.WorkRow, work.id) is None:
            session.add(schema.WorkRow(**asdict(work)))
        if work.kind == "forget":
            row = schema.ForgettingRow(number_hash=_hash(work.number), at=work.created_at)
            session.merge(row)

    def _is_forgotten(self, session: Session, number: str, at: datetime) -> bool:
        """Whether the caller was forgotten since."""
        row = session.get(schema.ForgettingRow, _hash(number))
        return row is not None and row.at >= at

    def work(self, work_id: str) -> Work | None:
        """Unfinished work by its id; None if it is done or was cancelled."""
        with self._session() as session:
            row = session.get(schema.WorkRow, work_id)
            return row.to_work() if row else None

    def condense_work(self, work_id: str, facts: list[str]) -> None:
        """Of words that were to be learned from, leave these facts to be remembered."""
        words = update(schema.WorkRow).filter_by(id=work_id, kind="learn")
        with self._session() as session:
            session.execute(words.values(kind="remember", content=facts))

    def remove_work(self, work_id: str) -> None:
        with self._session() as session:
            session.execute(delete(schema.WorkRow).filter_by(id=work_id))

    def pending_work(self) -> list[Work]:
        """All unfinished work, oldest first."""
        with self._session() as session:
            rows = session.scalars(select(schema.WorkRow).order_by(schema.WorkRow.created_at))
            return [row.to_work() for row in rows]

    def pending_forget(self, number: str) -> bool:
        """Whether a caller is still to be forgotten everywhere."""
        with self._session() as session:
            wanted = select(schema.WorkRow.id).filter_by(number=number, kind="forget")
            return session.scalars(wanted).first() is not None

    def truncate_log(self) -> None:
        """What was deleted would stay readable in SQLite's write-ahead log.

        SQLite does not wait for another checkpoint that is running, so we do.
        """
        if self.engine.dialect.name != "sqlite":
            return
        deadline = time.monotonic() + TRUNCATE_S
        while self._is_log_in_use():
            if time.monotonic() > deadline:
                logger.warning("deleted words stay in SQLite's log until it is next truncated")
                return
            time.sleep(0.02)

    def _is_log_in_use(self) -> bool:
        """Whether the log could not be truncated."""
        with self._session() as session:
            is_busy, _, _ = session.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()
        return bool(is_busy)


def _kind(row: dict[str, Any]) -> type[ToolCallRow] | type[TurnRow]:
    """The table of a row that was added to a call."""
    return ToolCallRow if "name" in row else TurnRow


def _hash(number: str) -> str:
    return sha256(number.encode()).hexdigest()


def _percentile_95(values: list[float]) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=20, method="inclusive")[-1]
