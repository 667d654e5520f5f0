"""What callers say about themselves is known in later calls, and forgotten when they ask."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import durable
from config import Settings
from memory import Memory
from records import Records, RecordsUnavailable, Work
from tests.postgres import Postgres
from tests.test_durable import until

ROOT = Path(__file__).parent.parent
ANNA, BEN = "+15550001111", "+15550002222"
PROCESS = """
import sys, threading
from pathlib import Path
from config import Settings
from memory import Memory
from records import Records

def stuck(number, facts):
    print("written", flush=True)
    threading.Event().wait()

settings = Settings(data_dir=Path(sys.argv[1]))
records = Records(settings.records_url, spool=settings.data_dir / "spool")
records.migrate()
records.set_facts = stuck
memory = Memory(settings, records)
memory.start()
print("started", flush=True)
threading.Event().wait()
"""


class Model:
    """A tiny OpenAI: extracts `facts` from anything; embeds by length; may be down or held."""

    def __init__(self) -> None:
        self.facts = ["Lives in Leeds"]
        self.size = 1536
        self.down: set[str] = set()
        self.asked: list[str] = []
        self.held = threading.Event()
        self.held.set()
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                kind = self.path.rsplit("/", 1)[-1]
                model.asked.append(kind)
                if kind == "completions":
                    model.held.wait(10)
                status = 500 if kind in model.down else 200
                reply = json.dumps(model.reply(kind, body)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reply(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "embeddings":
            vectors = [[1.0, float(len(text))] + [0.0] * (self.size - 2) for text in body["input"]]
            data = [{"index": i, "embedding": v} for i, v in enumerate(vectors)]
            return {"object": "list", "data": data, "model": "m"}
        content = json.dumps({"memory": [{"text": fact} for fact in self.facts]})
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]}


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.held.set()
    model.server.shutdown()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def records(settings: Settings) -> Iterator[Records]:
    records = Records(settings.records_url, spool=settings.data_dir / "spool")
    records.migrate()
    yield records
    records.dispose()


@pytest.fixture
def memory(settings: Settings, records: Records) -> Iterator[Memory]:
    memory = Memory(settings, records)
    memory.start()
    yield memory
    memory.close()


@pytest.fixture
def taught(settings: Settings, records: Records, model: Model) -> Iterator[Memory]:
    """A memory with a model to learn with."""
    key: dict[str, Any] = {"openai_api_key": "k", "openai_base_url": model.url}
    memory = Memory(Settings(data_dir=settings.data_dir, **key), records)
    memory.start()
    yield memory
    model.held.set()
    memory.close()


def is_idle(records: Records) -> bool:
    return not records.pending_work()


def traces(folder: Path, words: str) -> list[str]:
    """The files that hold these words."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and words.encode() in path.read_bytes():
                found.append(path.name)
        except FileNotFoundError:  # a journal, gone since it was listed
            continue
    return found


def run(settings: Settings) -> subprocess.Popen[str]:
    """Another process that owns the memory, and can write a memory but not commit it."""
    arguments = [sys.executable, "-c", PROCESS, str(settings.data_dir)]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    return process


def test_what_was_said_is_known_later_and_only_that(
    memory: Memory, records: Records, settings: Settings
) -> None:
    memory.remember(ANNA, "1", "The caller's order number is 4471")
    memory.learn(ANNA, "1", ["Hi, my order number is 4471.", "I live in Leeds. I want Zanzibar!"])
    memory.learn(BEN, "2", ["I am vegan"])
    until(lambda: is_idle(records))

    assert memory.known(ANNA) == ["The caller's order number is 4471", "I live in Leeds."]
    assert memory.known(BEN) == ["I am vegan"]
    assert memory.search(ANNA, "Which town does she live in?")[0] == "I live in Leeds."
    assert traces(settings.data_dir, "Leeds")
    until(lambda: not traces(settings.data_dir, "Zanzibar"))


async def test_it_is_started_and_tended_on_an_event_loop(
    settings: Settings, records: Records
) -> None:
    memory = Memory(settings, records)
    memory.start()
    memory.learn(ANNA, "1", ["I live in Leeds"])
    memory.tend()
    await asyncio.to_thread(until, lambda: is_idle(records))
    memory.close()

    assert memory.known(ANNA) == ["I live in Leeds"]


def test_knowing_takes_no_time(memory: Memory, records: Records) -> None:
    records.set_facts(ANNA, [f"fact {i}" for i in range(20)])
    memory.known(ANNA)
    took = []
    for _ in range(50):
        began = time.perf_counter()
        memory.known(ANNA)
        took.append(time.perf_counter() - began)

    assert sorted(took)[45] < 0.02


def test_forgetting_cancels_and_deletes(
    memory: Memory, records: Records, settings: Settings
) -> None:
    memory.remember(ANNA, "1", "Keeps ferrets")
    memory.remember(BEN, "2", "Keeps bees")
    until(lambda: is_idle(records))

    memory.learn(ANNA, "3", ["I have ferrets"])
    memory.forget(ANNA, "3")
    assert memory.known(ANNA) == []
    assert memory.search(ANNA, "ferrets") == []
    until(lambda: is_idle(records))

    assert memory.known(ANNA) == []
    assert memory.known(BEN) == ["Keeps bees"]
    until(lambda: not traces(settings.data_dir, "ferrets"))
    until(lambda: not traces(settings.data_dir, ANNA))
    memory.remember(ANNA, "4", "Keeps cats")
    until(lambda: is_idle(records))
    assert memory.known(ANNA) == ["Keeps cats"]


def test_work_that_is_repeated_leaves_no_double(memory: Memory, records: Records) -> None:
    memory.close()
    memory.learn(ANNA, "1", ["I live in Leeds"])
    memory.learn(ANNA, "1", ["I live in York"])
    work = records.pending_work()
    assert [w.id for w in work] == ["learn-1"]
    memory.start()
    until(lambda: is_idle(records))

    records.add_work(work[0])
    memory.work("learn-1")

    assert memory.known(ANNA) == ["I live in Leeds"]


def test_an_owner_killed_between_write_and_commit_is_followed(
    settings: Settings, records: Records
) -> None:
    memory = Memory(settings, records)
    owner = run(settings)
    try:
        assert owner.stdout
        memory.start()
        memory.remember(ANNA, "1", "Lives in Leeds")
        assert owner.stdout.readline() == "written\n"
        memory.tend()
        assert memory.known(ANNA) == []
        owner.kill()
        owner.wait()

        memory.remember(ANNA, "2", "Keeps bees")
        memory.tend()
        until(lambda: is_idle(records))
        assert memory.known(ANNA) == ["Lives in Leeds", "Keeps bees"]
        assert memory.search(ANNA, "Leeds") == ["Lives in Leeds"]
    finally:
        owner.kill()
        memory.close()


def test_postgres_keeps_the_row_and_the_queue(tmp_path: Path, postgres: Postgres) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres.new_database())
    records = Records(settings.records_url, spool=tmp_path / "spool")
    records.migrate()
    memory = Memory(settings, records)
    memory.start()
    memory.learn(ANNA, "1", ["I live in Leeds"])
    until(lambda: is_idle(records))
    assert memory.known(ANNA) == ["I live in Leeds"]
    memory.forget(ANNA, "1")
    until(lambda: is_idle(records))

    assert memory.known(ANNA) == []
    assert not traces(tmp_path, "Leeds")
    memory.close()
    records.dispose()


def test_who_does_not_own_the_store_finds_by_words(settings: Settings, records: Records) -> None:
    memory = Memory(settings, records)
    records.set_facts(ANNA, ["Keeps bees", "Lives in Leeds"])

    assert memory.search(ANNA, "where does she live, Leeds?") == ["Lives in Leeds", "Keeps bees"]
    memory.close()


def test_without_records_nothing_is_promised(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    memory = Memory(settings, Records(f"sqlite:///{tmp_path}/other/none.db", spool=tmp_path / "s"))
    with pytest.raises(RecordsUnavailable):
        memory.known(ANNA)
    with pytest.raises(RecordsUnavailable):
        memory.remember(ANNA, "1", "x")
    with pytest.raises(RecordsUnavailable):
        memory.forget(ANNA, "1")
    memory.start()
    memory.close()


def test_a_model_learns_and_keeps_no_words(
    taught: Memory, records: Records, model: Model, settings: Settings
) -> None:
    model.facts = ["Order number is 4471", "Lives in Leeds"]
    taught.remember(ANNA, "1", "The caller's order number is 4471")
    taught.learn(ANNA, "1", ["I moved to Leeds from Zanzibar"])
    until(lambda: is_idle(records))

    assert taught.known(ANNA) == ["The caller's order number is 4471", "Lives in Leeds"]
    assert "Lives in Leeds" in taught.search(ANNA, "home town")
    until(lambda: not traces(settings.data_dir, "Zanzibar"))


@pytest.mark.parametrize("down", ["completions", "embeddings"])
def test_what_a_dead_model_did_not_learn_is_learned_later(
    taught: Memory, records: Records, model: Model, down: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "RETRY_FAILED_S", 0)
    model.down = {down}
    taught.learn(ANNA, "1", ["I live in Leeds"])
    until(lambda: len(model.asked) >= 2)
    assert taught.known(ANNA) == []
    assert not is_idle(records)

    model.down = set()

    def is_learned() -> bool:
        taught.tend()
        return is_idle(records)

    until(is_learned)
    assert taught.known(ANNA) == ["Lives in Leeds"]


def test_an_unreadable_or_unembedded_reply_is_a_failure(
    taught: Memory, records: Records, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = taught._store._mem0.embedding_model  # type: ignore[union-attr]
    whole = embedder.embed

    def only_queries(words: str, action: str) -> Any:
        if action == "add":
            raise OSError("cut off")
        return whole(words, action)

    monkeypatch.setattr(embedder, "embed", only_queries)
    monkeypatch.setattr(embedder, "embed_batch", lambda words, action: only_queries("", action))
    taught.learn(ANNA, "1", ["I live in Leeds"])
    until(lambda: model.asked.count("completions") >= 2)
    monkeypatch.undo()
    until(lambda: is_idle(records))

    assert taught.known(ANNA) == ["Lives in Leeds"]


def test_a_slow_model_holds_up_nobody(taught: Memory, records: Records, model: Model) -> None:
    taught.remember(BEN, "1", "Keeps bees")
    until(lambda: is_idle(records))
    model.held.clear()
    taught.learn(ANNA, "2", ["I live in Leeds"])
    until(lambda: "completions" in model.asked)

    began = time.monotonic()
    assert taught.search(BEN, "bees") == ["Keeps bees"]
    assert taught.known(ANNA) == []
    assert time.monotonic() - began < 1


def test_any_length_of_embedding_will_do_and_may_change(
    settings: Settings, records: Records, model: Model
) -> None:
    key: dict[str, Any] = {"openai_api_key": "k", "openai_base_url": model.url}
    for size, call_id, fact in ((8, "1", "Lives in Leeds"), (12, "2", "Keeps bees")):
        model.size, model.facts = size, [fact]
        memory = Memory(Settings(data_dir=settings.data_dir, **key), records)
        memory.start()
        memory.learn(ANNA, call_id, ["Whatever was said"])
        until(lambda: is_idle(records))
        found = memory.search(ANNA, fact)
        memory.close()

        assert found == [fact]
    assert memory.known(ANNA) == ["Lives in Leeds", "Keeps bees"]


def test_without_an_embedding_the_store_is_opened_later(
    settings: Settings, records: Records, model: Model
) -> None:
    key: dict[str, Any] = {"openai_api_key": "k", "openai_base_url": model.url}
    memory = Memory(Settings(data_dir=settings.data_dir, **key), records)
    model.down = {"embeddings"}
    memory.start()
    memory.learn(ANNA, "1", ["I live in Leeds"])
    model.down = set()
    memory.tend()
    until(lambda: is_idle(records))
    memory.close()

    assert memory.known(ANNA) == ["Lives in Leeds"]


def test_what_no_model_learned_in_a_day_is_found_without_one(
    taught: Memory, records: Records, model: Model, settings: Settings
) -> None:
    model.down = {"completions", "embeddings"}
    day_ago = datetime.now(timezone.utc) - timedelta(hours=25)
    words = ["I live in Leeds.", "Where is Zanzibar?"]
    records.add_work(Work("learn-1", "learn", "1", ANNA, words, day_ago))
    records.add_work(Work("learn-2", "learn", "2", BEN, words))
    assert traces(settings.data_dir, "Zanzibar")
    taught.tend()
    assert [work.content for work in records.pending_work()] == [["I live in Leeds."], words]

    model.down = {"completions"}
    until(lambda: taught.known(ANNA))
    records.remove_work("learn-2")
    records.truncate_log()
    assert taught.known(ANNA) == ["I live in Leeds."]
    assert not traces(settings.data_dir, "Zanzibar")


def test_a_failure_is_logged_and_kept_without_words(
    taught: Memory, model: Model, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    model.down = {"completions"}
    taught.learn(ANNA, "1", ["I live in Zanzibar"])
    until(lambda: "memory work failed: InternalServerError" in caplog.messages)
    taught.close()

    assert "Zanzibar" not in caplog.text
    assert ANNA not in caplog.text
    assert not [name for name in traces(settings.data_dir, "Zanzibar") if "durable" in name]


def test_forgetting_late_spares_what_was_confirmed_since(
    memory: Memory, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.remember(ANNA, "1", "Keeps ferrets")
    until(lambda: is_idle(records))
    store = memory._store
    assert store
    delete, failures = store.delete, iter([OSError] * durable.ATTEMPTS)

    def fail_at_first(number: str, **fields: str) -> None:
        if not fields and (failure := next(failures, None)):
            raise failure
        delete(number, **fields)

    monkeypatch.setattr(store, "delete", fail_at_first)
    memory.forget(ANNA, "1")
    until(lambda: next(iter(failures), None) is None)
    assert not is_idle(records)
    memory.remember(ANNA, "2", "Keeps bees")
    until(lambda: is_idle(records))

    assert memory.known(ANNA) == ["Keeps bees"]
