from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from call import Call, DialRequest, Direction, Disposition, EndedBy, Ending
from records import Records, RecordsUnavailable, Repeated, Work
from tests.postgres import Postgres

NUMBER = "+15551230001"


class Clock:
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.db'}"
    server: Postgres | None = request.getfixturevalue("postgres")
    if server is None:
        pytest.skip("no Postgres is installed here")
    return server.new_database()


@pytest.fixture
def records(url: str, tmp_path: Path, clock: Clock) -> Iterator[Records]:
    records = Records(url, spool=tmp_path / "spool", store_transcripts=True, clock=clock)
    records.migrate()
    yield records
    records.dispose()


def a_call(name: str = "c1", worker: str = "w1") -> Call:
    request = DialRequest(NUMBER, campaign_id="spring")
    return Call(
        name, f"job-{name}", f"room-{name}", worker, Direction.OUTBOUND, NUMBER, None, request
    )


def completed() -> Ending:
    return Ending(Disposition.COMPLETED, EndedBy.CALLER, "hung up")


def test_a_call_is_recorded_whole(records: Records) -> None:
    call = a_call()
    records.open(call)
    records.add_tool_call(call.id, "transfer_call", "busy", 812.5)
    records.add_turn(call.id, "caller", "Where is my order?")
    records.add_turn(call.id, "agent", "It leaves", is_interrupted=True)
    call.turns, call.reply_ms, call.usage = 2, [900.0, 1100.0], [{"model": "x"}]
    call.end(completed())
    records.save(call)
    row = records.get("c1")

    assert row is not None
    assert (row.disposition, row.ended_by, row.campaign_id) == ("completed", "caller", "spring")
    assert (row.reply_p50_ms, row.turns, row.usage) == (1000.0, 2, [{"model": "x"}])
    assert [(t.name, t.code, t.ms) for t in row.tool_calls] == [("transfer_call", "busy", 812.5)]
    assert [(t.speaker, t.text, t.is_interrupted) for t in row.said] == [
        ("caller", "Where is my order?", False),
        ("agent", "It leaves", True),
    ]
    assert row.ended_at is not None and row.ended_at.tzinfo is not None
    assert row.lease_until is None


def test_an_id_is_opened_once(records: Records) -> None:
    records.open(a_call())

    with pytest.raises(Repeated):
        records.open(a_call())


def test_the_first_ending_stands(records: Records, clock: Clock) -> None:
    call = a_call()
    records.open(call)
    clock.forward(60)
    assert records.close_lost("c1")
    call.end(completed())
    records.save(call)
    row = records.get("c1")

    assert row is not None
    assert (row.disposition, row.reason) == ("failed", "worker lost")


def test_one_of_two_workers_closes_a_lost_call(records: Records, clock: Clock) -> None:
    for name, worker in (("c1", "lost"), ("c2", "alive")):
        records.open(a_call(name, worker))
    clock.forward(10)
    records.renew("alive")
    clock.forward(10)

    assert [row.id for row in records.expired()] == ["c1"]
    assert [records.close_lost("c1"), records.close_lost("c1")] == [True, False]
    assert not records.close_lost("c2")
    assert records.lost_rooms() == {"room-c1"}


def test_a_caller_is_forgotten_with_their_unfinished_work(records: Records) -> None:
    work = Work("w", "remember", "c1", NUMBER, ["I have a dog."])
    records.set_facts(NUMBER, ["has a cat"])
    records.add_work(work)
    records.add_work(work)
    assert records.pending_work() == [work]
    records.forget(NUMBER)

    assert records.facts(NUMBER) == []
    assert records.work("w") is None


def test_migrations_and_tables_agree(records: Records) -> None:
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415
    from alembic.migration import MigrationContext  # noqa: PLC0415

    from schema import Base  # noqa: PLC0415

    with records.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        found = compare_metadata(context, Base.metadata)
    drift = [d for d in found if isinstance(d, tuple) and d[0].endswith(("_table", "_column"))]

    assert drift == []


def test_two_processes_may_migrate_at_once(url: str, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from records import Records;"
        "Records(sys.argv[1], spool=pathlib.Path(sys.argv[2])).migrate()"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path / "spool")])
        for _ in range(2)
    ]

    assert [run.wait(60) for run in runs] == [0, 0]


def test_a_call_goes_on_while_the_database_is_away(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "records.db"
    records = Records(f"sqlite:///{path}", spool=tmp_path / "spool", clock=clock)
    records.migrate()
    records.engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0.01})
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    call = a_call()
    records.open(call)
    records.add_tool_call(call.id, "end_call", "ok", 1.0)
    call.end(completed())
    records.save(call)
    assert not records.leave_work(Work("w", "learn", call.id, NUMBER, ["I keep bees."]))
    with pytest.raises(RecordsUnavailable):
        records.set_facts(NUMBER, [])
    locker.execute("ROLLBACK")
    records.renew("w1")
    row = records.get("c1")

    assert row is not None
    assert row.disposition == "completed"
    assert [tool.name for tool in row.tool_calls] == ["end_call"]
    assert [work.content for work in records.pending_work()] == [["I keep bees."]]
    assert not list((tmp_path / "spool").glob("*.json"))


def test_what_waited_is_written_at_the_next_start(url: str, tmp_path: Path) -> None:
    away = Records("postgresql://nobody@127.0.0.1:1/none", spool=tmp_path / "spool")
    call = a_call()
    away.open(call)
    call.end(completed())
    away.save(call)
    records = Records(url, spool=tmp_path / "spool")
    records.migrate()
    row = records.get("c1")

    assert row is not None
    assert row.disposition == "completed"


def test_deleted_words_are_gone_from_the_file(tmp_path: Path) -> None:
    records = Records(f"sqlite:///{tmp_path / 'records.db'}", spool=tmp_path / "spool")
    records.migrate()
    records.add_work(Work("w", "learn", "c1", NUMBER, ["My tortoise is called Zebedee."]))
    records.remove_work("w")
    with records.engine.connect() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    records.dispose()

    assert not any(b"Zebedee" in path.read_bytes() for path in tmp_path.rglob("*.db*"))
