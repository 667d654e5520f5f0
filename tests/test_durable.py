"""Work in the durable queue is done once, by one owner, whatever dies meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

import durable
from config import Settings
from durable import Durable
from tests.postgres import Postgres

ROOT = Path(__file__).parent.parent
OWNER = """
import sys, threading
from pathlib import Path
from config import Settings
from durable import Durable

def work(work_id):
    print("began", work_id, flush=True)
    threading.Event().wait()

queue = Durable(Settings(data_dir=Path(sys.argv[1]), database_url=sys.argv[2]))
assert queue.own()
queue.launch(work)
queue.enqueue("a")
threading.Event().wait()
"""


def until(holds: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came about"
        threading.Event().wait(0.02)


class Worker:
    """Notes the ids it was given; raises for the first `failures` of them."""

    def __init__(self, failures: int = 0) -> None:
        self.done: list[str] = []
        self._failures = failures

    def __call__(self, work_id: str) -> None:
        self.done.append(work_id)
        if len(self.done) <= self._failures:
            raise OSError("not yet")


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Durable]:
    queue = Durable(Settings(data_dir=tmp_path))
    yield queue
    queue.close()


def test_work_is_done_once_however_often_it_is_enqueued(queue: Durable) -> None:
    worker = Worker()
    assert queue.own()
    queue.launch(worker)

    for work_id in ["a", "a", "b"]:
        queue.enqueue(work_id)

    until(lambda: len(worker.done) == 2)
    assert worker.done == ["a", "b"]


@pytest.fixture
def failing(queue: Durable, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker whose work "a" has failed as often as it is tried at once."""
    monkeypatch.setattr(durable, "RETRY_FAILED_S", 0)
    worker = Worker(failures=durable.ATTEMPTS)
    assert queue.own()
    queue.launch(worker)
    queue.enqueue("a")
    until(lambda: len(worker.done) == durable.ATTEMPTS)
    return worker


def test_what_is_still_retried_does_not_run_in_the_next_launch(tmp_path: Path) -> None:
    first, second = (Durable(Settings(data_dir=tmp_path / name)) for name in ("1", "2"))
    failing, worker = Worker(failures=durable.ATTEMPTS), Worker()
    assert first.own()
    first.launch(failing)
    first.enqueue("a")
    until(lambda: failing.done)
    first.close()
    assert second.own()
    second.launch(worker)
    second.enqueue("b")
    until(lambda: worker.done)
    time.sleep(2)  # longer than the pause before the second attempt
    second.close()

    assert worker.done == ["b"]


def until_retried(queue: Durable, failing: Worker) -> None:
    def is_done() -> bool:
        queue.tend({"a": time.time()})
        return len(failing.done) > durable.ATTEMPTS

    until(is_done)


def test_failed_work_is_retried_now_and_again_later(queue: Durable, failing: Worker) -> None:
    until_retried(queue, failing)


def test_what_has_failed_for_long_is_retried_seldom(queue: Durable, failing: Worker) -> None:
    for _ in range(5):
        queue.tend({"a": time.time() - 600})
        time.sleep(0.2)
    assert len(failing.done) == durable.ATTEMPTS

    until_retried(queue, failing)


def test_finished_work_is_purged_and_lost_work_enqueued(queue: Durable) -> None:
    worker = Worker()
    assert queue.own()
    queue.launch(worker)

    queue.tend({"never-enqueued": time.time()})
    until(lambda: worker.done)

    def is_purged() -> bool:
        queue.tend({})
        return not queue.ids()

    until(is_purged)


def test_one_owner_at_a_time(queue: Durable, tmp_path: Path) -> None:
    other = Durable(Settings(data_dir=tmp_path))

    assert queue.own()
    assert queue.own()
    assert not other.own()
    queue.close()
    assert other.own()
    other.close()


def test_enqueueing_without_an_owner_yet_is_left_for_the_owner(queue: Durable) -> None:
    queue.enqueue("a")

    assert queue.ids() == set()


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        return Settings(data_dir=tmp_path)
    postgres: Postgres = request.getfixturevalue("postgres")
    return Settings(data_dir=tmp_path, database_url=postgres.new_database())


def test_a_killed_owner_is_followed_and_its_work_done(settings: Settings) -> None:
    arguments = [sys.executable, "-c", OWNER, str(settings.data_dir), settings.database_url]
    owner = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    queue, worker = Durable(settings), Worker()
    try:
        assert owner.stdout
        assert owner.stdout.readline() == "began a\n"
        assert not queue.own()
        queue.enqueue("b")

        owner.kill()
        owner.wait()
        until(queue.own)
        queue.launch(worker)

        until(lambda: sorted(worker.done) == ["a", "b"])
    finally:
        owner.kill()
        queue.close()


def test_postgres_asks_after_a_silent_owner(tmp_path: Path, postgres: Postgres) -> None:
    queue = Durable(Settings(data_dir=tmp_path, database_url=postgres.new_database()))
    try:
        assert queue.own()
        assert queue._connection
        assert queue._connection.scalar(text("show tcp_keepalives_idle")) == "10"
    finally:
        queue.close()
