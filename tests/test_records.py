from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from call import Call, DialRequest, Direction, Disposition, EndedBy, Ending
from records import Records, RecordsUnavailable, Repeated, Work
from schema import connect
from spool import Spool
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
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def records(url: str, tmp_path: Path, clock: Clock) -> Iterator[Records]:
    records = Records(url, spool=tmp_path / "spool", store_transcripts=True, clock=clock)
    records.migrate()
    yield records
    records.dispose()


@pytest.fixture
def away(tmp_path: Path, clock: Clock) -> Records:
    """The same records while their database does not answer."""
    url = "postgresql://nobody@127.0.0.1:1/none"
    return Records(url, spool=tmp_path / "spool", store_transcripts=True, clock=clock)


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
    records.open(a_call())
    records.add_turn("c1", "caller", "I have a dog.")
    records.set_facts(NUMBER, ["has a cat"])
    records.add_work(work)
    records.add_work(work)
    assert records.pending_work() == [work]
    forget = Work("f", "forget", "c1", NUMBER, [])
    records.add_work(forget)
    later = Work("l", "remember", "c2", NUMBER, ["I have a bird."])
    records.add_work(later)
    records.forget(forget)
    row = records.get("c1")

    assert records.facts(NUMBER) == []
    assert records.pending_work() == [later]
    assert row is not None
    assert row.said == []


def test_what_waited_since_before_a_caller_was_forgotten_is_not_written(
    records: Records, away: Records, clock: Clock
) -> None:
    def wait_for_the_database(call_id: str) -> None:
        away.open(a_call(call_id))
        away.add_turn(call_id, "caller", "I have a dog.")
        work = Work(f"learn-{call_id}", "learn", call_id, NUMBER, ["I have a dog."], clock.now)
        assert not away.leave_work(work)

    wait_for_the_database("before")
    clock.forward(1)
    forget = Work("f", "forget", "c", NUMBER, [], clock.now)
    records.add_work(forget)
    records.forget(forget)
    clock.forward(1)
    wait_for_the_database("after")
    records.renew("w1")
    before, after = records.get("before"), records.get("after")

    assert [work.id for work in records.pending_work()] == ["learn-after"]
    assert before is not None
    assert after is not None
    assert [len(before.said), len(after.said)] == [0, 1]


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


def test_an_ending_that_waited_stands_over_a_lost_worker(
    records: Records, away: Records, clock: Clock
) -> None:
    call = a_call()
    records.open(call)
    call.end(completed())
    away.save(call)
    clock.forward(60)
    assert records.close_lost("c1")
    records.renew("w1")
    row = records.get("c1")

    assert row is not None
    assert (row.disposition, row.reason) == ("completed", "hung up")
    assert records.lost_rooms() == set()


def test_what_waited_is_written_once(records: Records, away: Records, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    away.open(a_call())
    away.add_tool_call("c1", "end_call", "ok", 1.25)
    away.add_turn("c1", "caller", "Goodbye.")
    shutil.copytree(spool, tmp_path / "copy")
    with Spool(spool).replaying():
        records.renew("w1")
        assert records.get("c1") is None
    records.renew("w1")
    shutil.copytree(tmp_path / "copy", spool, dirs_exist_ok=True)
    records.renew("w1")
    row = records.get("c1")

    assert row is not None
    assert len(row.tool_calls) == len(row.said) == 1
    assert not list(spool.glob("*.json"))


def test_what_can_not_be_written_is_kept_and_holds_up_nothing(
    records: Records, away: Records, tmp_path: Path, clock: Clock
) -> None:
    spool = tmp_path / "spool"
    away.open(a_call("c1"))
    (spool / "00.json").write_text("")
    (spool / "01.json").write_text('{"row": {"id": "half"}, "added": []}')
    unfit = a_call("c\0")
    records.open(unfit)  # Postgres stores no NUL
    clock.forward(60)
    records.renew("w1")

    assert records.get("c1") is not None
    assert records.expired() == []
    kept = [path.read_text() for path in spool.iterdir()]
    assert any("half" in text for text in kept)
    assert "" in kept
    assert len(records.recent(9)) == 2 or any("c\\u0000" in text for text in kept)


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_database_that_only_reads_is_away(
    records: Records, url: str, tmp_path: Path, clock: Clock
) -> None:
    options = "?options=-c%20default_transaction_read_only%3Don"
    standby = Records(url + options, spool=tmp_path / "spool", clock=clock)
    standby.open(a_call())
    records.renew("w1")

    assert records.get("c1") is not None
    with pytest.raises(RecordsUnavailable):
        standby.set_facts(NUMBER, [])


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_silent_postgres_is_given_up_soon(records: Records, url: str) -> None:
    engine = connect(f"{url}?connect_timeout=9")
    with engine.connect() as connection:
        client = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
    engine.dispose()

    assert (client["tcp_user_timeout"], client["connect_timeout"]) == ("5000", "9")


def test_errors_do_not_tell_personal_data(records: Records) -> None:
    with pytest.raises(SQLAlchemyError) as raised, records.engine.connect() as connection:
        connection.execute(text("select :number from nowhere"), {"number": NUMBER})

    assert NUMBER not in str(raised.value)


def test_deleted_words_are_unreadable_whoever_else_truncates_the_log(tmp_path: Path) -> None:
    database = tmp_path / "records.db"
    records = Records(f"sqlite:///{database}", spool=tmp_path / "spool")
    records.migrate()
    over = threading.Event()

    def truncate() -> None:
        while not over.is_set():
            records.truncate_log()

    rival = threading.Thread(target=truncate)
    rival.start()
    try:
        for _ in range(20):
            records.add_work(Work("w1", "learn", "c1", NUMBER, ["I live in Zanzibar."]))
            records.remove_work("w1")
            records.truncate_log()
            assert not any(b"Zanzibar" in path.read_bytes() for path in tmp_path.glob("records*"))
    finally:
        over.set()
        rival.join()
        records.dispose()
