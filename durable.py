"""The durable queue: work that outlives a call and a killed worker, run by one owner at a time."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions
from dbos._error import DBOSException
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

import schema
from config import Settings

logger = logging.getLogger(__name__)

APPLICATION = "customer-support"
# DBOS would derive the version from the workflow's source: an edit would strand queued work.
VERSION = "1"
# The next owner recovers what this id left running; with an id of its own it would not.
EXECUTOR = "owner"
QUEUE = "memory"
WORKFLOW = "work"
POLL_S = 0.2
ATTEMPTS = 3
RETRY_FAILED_S, RETRY_AT_LEAST_EVERY_S = 60.0, 3600.0
CLOSE_S = 5.0
_OWNER_LOCK = 7_236_452
"""Key of the Postgres advisory lock that the owner holds."""

_NOTICE_DEATH = text(
    "set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3;"
    "set tcp_user_timeout = 25000"  # ms, where its last reply was never received
)
"""Postgres then frees the lock of an owner whose machine has gone after 25 s; else after 2 h."""

_FAILED = ["ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]

_do: Callable[[str], None] | None = None
_busy = threading.Lock()
_is_registered = False


class Halted(Exception):
    """The process is closing; the next owner does the work."""


class Durable:
    """The queue of one database; DBOS runs in the process that owns it, others only add to it."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.data_dir
        self._folder.mkdir(parents=True, exist_ok=True)
        self._is_sqlite = settings.records_url.startswith("sqlite")
        self._file: IO[str] | None = None
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self._client: DBOSClient | None = None
        self._launched = False
        if self._is_sqlite:
            self._url = f"sqlite:///{self._folder / 'durable.db'}"
        else:
            self._engine = schema.connect(settings.records_url)
            self._url = self._engine.url.render_as_string(hide_password=False)

    def own(self) -> bool:
        """Become the owner, or find that this process still is; death releases ownership."""
        return self._own_file() if self._is_sqlite else self._own_lock()

    def _own_file(self) -> bool:
        if self._file:
            return True
        file = open(self._folder / "memory.lock", "w")  # noqa: SIM115 held while owned
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def _own_lock(self) -> bool:
        assert self._engine
        try:
            if self._connection:
                self._connection.execute(text("select 1"))
                return True
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(_NOTICE_DEATH)
            if connection.scalar(text(f"select pg_try_advisory_lock({_OWNER_LOCK})")):
                self._connection = connection
                return True
            connection.close()
        except SQLAlchemyError:
            self._disown()
        return False

    def launch(self, work: Callable[[str], None]) -> None:
        """Run `work` for each id that is or was enqueued; only the owner may."""
        global _do
        _do = work
        _register()
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": self._url,
            "application_version": VERSION,
            "executor_id": EXECUTOR,
            "log_level": "CRITICAL",
            "db_engine_kwargs": {"hide_parameters": True},
        }
        self._launched = True
        _off_the_loop(lambda: _launch(config))

    def enqueue(self, work_id: str) -> None:
        """Have the owner run this work once; if the queue is away, it is left for `tend`."""
        options: EnqueueOptions = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": work_id,
            "app_version": VERSION,
        }
        try:
            if client := self._reach():
                client.enqueue(options, work_id)
        except (SQLAlchemyError, DBOSException) as error:
            logger.warning("work waits for the queue to answer: %s", type(error).__name__)

    def tend(self, pending: Mapping[str, float]) -> None:
        """Purge what is done; enqueue what is pending but has no workflow, or has a failed one.

        `pending` is ids with the times of their creation (s since the epoch), oldest first.
        """
        _off_the_loop(lambda: self._tend(pending))

    def _tend(self, pending: Mapping[str, float]) -> None:
        client = self._reach()
        if client is None:
            return
        known = {status.workflow_id: status for status in self._list(client)}
        over = [
            id
            for id, status in known.items()
            if status.status == "SUCCESS"
            or (status.status in _FAILED and (id not in pending or _is_due(status, pending[id])))
        ]
        if over:
            client.delete_workflows(over)
        for id in pending:
            if id not in known or id in over:
                self.enqueue(id)

    def ids(self) -> set[str]:
        """The ids of all work in the queue, done or not, that is not purged yet."""
        client = self._reach()
        return {status.workflow_id for status in self._list(client)} if client else set()

    def _list(self, client: DBOSClient) -> list[Any]:
        return client.list_workflows(name=WORKFLOW, load_input=False, load_output=False)

    def _reach(self) -> DBOSClient | None:
        """A client of the queue; None until an owner has made its SQLite file."""
        if self._client is None:
            if self._is_sqlite and not Path(self._folder / "durable.db").exists():
                return None
            self._client = DBOSClient(
                system_database_url=self._url, lazy=True, retry_connection_errors=False
            )
        return self._client

    def halt(self) -> None:
        """Stop running work, after at most CLOSE_S; what is unfinished stays enqueued."""
        global _do
        if self._launched:
            self._launched = False
            _do = None
            # DBOS's own wait takes a second even when nothing runs.
            if _busy.acquire(timeout=CLOSE_S):
                _busy.release()
            _off_the_loop(DBOS.destroy)

    def close(self) -> None:
        """Halt, and let another process own the queue."""
        self.halt()
        if self._client:
            self._client.destroy()
            self._client = None
        if self._file:
            self._file.close()
            self._file = None
        self._disown()
        if self._engine:
            self._engine.dispose()

    def _disown(self) -> None:
        if self._connection:
            # The pool would keep the session, and with it the lock.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def _off_the_loop(act: Callable[[], None]) -> None:
    """DBOS refuses to be called in a thread that runs an event loop, or adopts the loop."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(act).result()


def _launch(config: DBOSConfig) -> None:
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(
        QUEUE, global_concurrency=1, polling_interval_sec=POLL_S, on_conflict="always_update"
    )


def _is_due(status: Any, created: float) -> bool:
    """Failed work rests for as long as it had been failing."""
    failed = float(status.updated_at or 0) / 1000
    rest = min(max(failed - created, RETRY_FAILED_S), RETRY_AT_LEAST_EVERY_S)
    return time.time() >= failed + rest


def _register() -> None:
    """Tell DBOS of the workflow, once per process: names can't be registered again."""
    global _is_registered
    if _is_registered:
        return
    _is_registered = True

    @DBOS.step(
        name="run",
        retries_allowed=True,
        max_attempts=ATTEMPTS,
        interval_seconds=0.5,
        backoff_rate=2,
    )
    def run(work_id: str, do: Callable[[str], None] | None) -> None:
        with _busy:
            # A retry may outlive its launch, and must not run in the next one.
            if do is None or do is not _do:
                raise Halted(work_id)
            do(work_id)

    @DBOS.workflow(name=WORKFLOW)
    def work(work_id: str) -> None:
        run(work_id, _do)
