"""Questions to the knowledge base: what is found, what is refused, and what a slow model costs."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import rag
from config import Settings
from rag import Knowledge, Passage

ROOT = Path(__file__).parent.parent
QUESTIONS = json.loads((Path(__file__).parent / "knowledge_questions.json").read_text())
CONCEPTS = [
    ("refund", "money back", "reimburse"),
    ("sofa", "couch", "seat"),
    ("warranty", "guarantee"),
    ("weather", "game", "helicopter", "pizza", "passport", "internet", "hotel", "dentist", "car"),
    ("train", "house", "aspirin"),
]


class ModelServer:
    """An embedding model that knows a few concepts; it can be slow, fail, or answer nonsense."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.status = 200
        self.body: bytes | None = None
        self.texts: list[str] = []
        model = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.texts += asked["input"]
                time.sleep(model.delay_s)
                body = model.body or json.dumps(_reply(asked["input"])).encode()
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(model.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def _reply(texts: list[str]) -> dict:
    def vector(text: str) -> list[float]:
        return [float(any(w in text.lower() for w in words)) for words in CONCEPTS] + [0.1]

    data = [
        {"object": "embedding", "index": n, "embedding": vector(text)}
        for n, text in enumerate(texts)
    ]
    return {"object": "list", "data": data, "model": "concepts", "usage": {}}


@pytest.fixture
def model() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Knowledge]:
    """A knowledge base of the files given, without a key unless settings say otherwise."""

    def make(files: dict[str, str], **settings: Any) -> Knowledge:
        folder = tmp_path / "knowledge"
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return Knowledge(replace(Settings(knowledge_dir=folder, data_dir=tmp_path), **settings))

    return make


FILES = {
    "returns.md": "# Returns\n\n## Refunds\n\nRefunds take 5 days.\n\n## Labels\n\nPrint a label.",
    "sofas.md": "# Sofas\n\n## Warranty\n\nA sofa has a warranty of 5 years.",
}


@pytest.fixture
def with_model(make: Callable[..., Knowledge], model: ModelServer) -> Callable[[], Knowledge]:
    return lambda: make(FILES, openai_api_key="key", openai_base_url=model.url)


@pytest.fixture(scope="module")
def larkfield() -> Knowledge:
    return Knowledge(Settings(knowledge_dir=ROOT / "knowledge"))


# What is found.


def test_a_question_in_the_callers_own_words_finds_the_sentence(larkfield: Knowledge) -> None:
    found = larkfield.search("How long until I get my money back?")

    assert "within 5 working days" in found[0].text
    assert found[0].source == "returns.md: How long refunds take"


@pytest.mark.parametrize("asked", [*QUESTIONS["held_out"]["small_talk"], "", "  ", "?!", "é"])
def test_small_talk_finds_nothing(larkfield: Knowledge, asked: str) -> None:
    found = larkfield.search(asked)

    assert found == []


@pytest.mark.parametrize(
    "asked", ["Do you sell helicopters?", "What's the weather tomorrow?", "Do you repair cars?"]
)
def test_a_topic_that_is_not_covered_finds_nothing(larkfield: Knowledge, asked: str) -> None:
    found = larkfield.search(asked)

    assert found == []


# (questions, recall, right passage among three, precision): each a little below what was measured
# when the questions were written (see docs): a change that makes it worse must say so here.
@pytest.mark.parametrize(
    ("half", "recall", "right", "precision"),
    [("tuned_on", 0.92, 0.88, 0.95), ("held_out", 0.80, 0.72, 0.93)],
)
def test_most_questions_are_answered_and_hardly_one_wrongly(
    larkfield: Knowledge, half: str, recall: float, right: float, precision: float
) -> None:
    covered, uncovered = QUESTIONS[half]["covered"], QUESTIONS[half]["uncovered"]
    found = {question: larkfield.search(question) for question in [*covered, *uncovered]}
    answered = sum(bool(found[question]) for question in covered)
    rightly = sum(
        any(passage.source.endswith(f": {heading}") for passage in found[question])
        for question, heading in covered.items()
    )
    wrongly = sum(bool(found[question]) for question in uncovered)
    print(f"\n{half}: answered {answered}/{len(covered)}, rightly {rightly}, wrongly {wrongly}")

    assert answered / len(covered) >= recall
    assert rightly / len(covered) >= right
    assert answered / (answered + wrongly) >= precision


def test_every_heading_asked_about_exists(larkfield: Knowledge) -> None:
    headings = {passage.source.split(": ", 1)[1] for passage in larkfield._passages}

    for half in QUESTIONS.values():
        assert set(half["covered"].values()) <= headings


def test_the_company_name_says_nothing_about_a_question(make: Callable[..., Knowledge]) -> None:
    knowledge = make({"a.md": "# Acme\n\nAcme sells anvils.\n\n# Hours\n\nWe open at 9."})

    found = knowledge.search("When does Acme open?"), knowledge.search("Does Acme buy gold?")

    assert found[1] == []


def test_synonyms_are_found_and_are_no_passages(make: Callable[..., Knowledge]) -> None:
    knowledge = make(
        {"a.md": "# Refunds\n\nRefunds take 5 days.", "synonyms.txt": "refund, money back\n# note"}
    )

    found = knowledge.search("When do I see my money back?")

    assert found == [Passage("Refunds take 5 days.", "a.md: Refunds")]


# How files become passages.


def test_passages_keep_their_heading_and_lose_their_markup(make: Callable[..., Knowledge]) -> None:
    text = (
        "# Shop\n\n<!-- draft -->\n\n### Pets\n\n- **Dogs** are [welcome](http://x)\n- Cats: no\n"
    )
    knowledge = make({"deep/shop.md": text})

    found = knowledge.search("Are dogs welcome?")

    assert found == [Passage("Dogs are welcome. Cats: no.", "deep/shop.md: Pets")]


def test_long_sections_are_cut_between_sentences(make: Callable[..., Knowledge]) -> None:
    sentences = " ".join(f"Sentence number {n} is about marmalade." for n in range(60))
    knowledge = make({"a.txt": sentences + " " + "x" * 1500})

    found = knowledge.search("marmalade", limit=100)

    assert all(len(passage.text) <= rag.PASSAGE_CHARS for passage in knowledge._passages)
    assert sum(p.text.count("marmalade.") for p in knowledge._passages) == 60
    assert all(p.text.startswith("Sentence") for p in found)
    assert found[0].source == "a.txt"


@pytest.mark.parametrize("files", [{}, {"empty.md": ""}, {"only.md": "# A heading"}])
def test_an_empty_base_finds_nothing(make: Callable[..., Knowledge], files: dict[str, str]) -> None:
    knowledge = make(files)

    found = knowledge.search("Where is my order?")

    assert found == []


def test_the_words_of_500_passages_are_searched_at_once(make: Callable[..., Knowledge]) -> None:
    text = "\n".join(
        f"## Topic {n}\n\n" + " ".join(f"word{(n * 31 + k * 7) % 5000}" for k in range(60))
        for n in range(500)
    )
    knowledge = make({"a.md": text})
    knowledge.search("word31 word38")
    times = []
    for n in range(50):
        begin = time.perf_counter()
        knowledge.search(f"What about word{n} and word{n + 7} or word{n + 14}?")
        times.append(time.perf_counter() - begin)

    assert sorted(times)[25] < 0.010


def test_many_calls_search_at_once(larkfield: Knowledge) -> None:
    asked = list(QUESTIONS["tuned_on"]["covered"]) * 5
    alone = [larkfield.search(question) for question in asked]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(larkfield.search, asked))

    assert together == alone


# With an embedding model.


def test_meaning_finds_what_shares_no_word(with_model: Callable[[], Knowledge]) -> None:
    knowledge = with_model()
    assert knowledge.meanings
    assert knowledge.meanings.is_ready.wait(10)

    found = knowledge.search("Will you reimburse me?")

    assert found[0].source == "returns.md: Refunds"
    assert knowledge.search("Which pizza is best?") == []


def test_passages_are_embedded_once_for_all_starts(
    with_model: Callable[[], Knowledge], model: ModelServer
) -> None:
    for _ in range(2):
        knowledge = with_model()
        assert knowledge.meanings
        assert knowledge.meanings.is_ready.wait(10)

    assert len(model.texts) == len(set(model.texts))


def test_a_slow_model_costs_the_caller_little(
    with_model: Callable[[], Knowledge], model: ModelServer
) -> None:
    knowledge = with_model()
    assert knowledge.meanings
    assert knowledge.meanings.is_ready.wait(10)
    model.delay_s = 0.6

    begin = time.perf_counter()
    found = knowledge.search("How long do refunds take?")
    waited = time.perf_counter() - begin

    assert found[0].source == "returns.md: Refunds"
    assert waited < rag.MEANING_LIMIT_S + 0.1


def test_a_hung_model_piles_up_no_threads_and_is_let_rest(
    with_model: Callable[[], Knowledge], model: ModelServer
) -> None:
    knowledge = with_model()
    assert knowledge.meanings
    assert knowledge.meanings.is_ready.wait(10)
    model.delay_s = 3.0
    before = threading.active_count()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(knowledge.search, [f"refunds {n}" for n in range(60)]))
    # the test's own server has a thread for each request that reached it
    assert threading.active_count() - before <= 2 * Settings().max_calls + 2
    time.sleep(rag.TIMEOUT_S + 0.5)
    begin = time.perf_counter()
    found = knowledge.search("How long do refunds take?")

    assert found[0].source == "returns.md: Refunds"
    assert time.perf_counter() - begin < 0.1


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b"{}"), (401, b'{"error": {"message": "bad key"}}'), (200, b"<html>"), (200, b"{}")],
)
def test_a_model_that_fails_at_start_leaves_the_words(
    with_model: Callable[[], Knowledge],
    model: ModelServer,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: bytes,
) -> None:
    model.status, model.body = status, body

    with caplog.at_level(logging.WARNING):
        knowledge = with_model()
        for _ in range(100):
            if "words alone are searched" in caplog.text:
                break
            time.sleep(0.05)
    found = knowledge.search("How long do refunds take?")

    assert "words alone are searched" in caplog.text
    assert found[0].source == "returns.md: Refunds"
    assert knowledge.meanings
    assert not knowledge.meanings.is_ready.is_set()


def test_a_model_that_comes_back_is_used(
    with_model: Callable[[], Knowledge], model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rag, "RETRIES_S", (0.0, 0.5))
    model.status = 503
    knowledge = with_model()
    time.sleep(0.3)
    model.status = 200

    assert knowledge.meanings
    assert knowledge.meanings.is_ready.wait(10)


def test_a_qdrant_server_that_is_away_leaves_the_words(
    make: Callable[..., Knowledge], model: ModelServer
) -> None:
    knowledge = make(
        FILES, openai_api_key="key", openai_base_url=model.url, qdrant_url="http://127.0.0.1:9"
    )

    found = knowledge.search("How long do refunds take?")

    assert found[0].source == "returns.md: Refunds"
