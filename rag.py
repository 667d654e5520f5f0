"""Finding the passage that answers a question.

The files in the knowledge folder are the truth; each process builds its index from them when it
starts. Words are searched in memory. With an embedding model, meaning is searched as well, but a
caller waits no longer than `MEANING_LIMIT_S` for it: then the words alone answer. A question that
the files don't cover gets no passage at all, so that nobody reads one out.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import tempfile
import textwrap
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import bm25s  # type: ignore[import-untyped]
import numpy as np
import openai
import Stemmer  # type: ignore[import-not-found]
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from config import Settings

logger = logging.getLogger("rag")

SYNONYMS = "synonyms.txt"  # in the knowledge folder: words callers use for each other
PASSAGE_CHARS = 600  # about 40 s read aloud, and the model is given three
RRF_K = 2  # reciprocal rank fusion: a place is worth 1 / (k + rank); Qdrant's default

COVERAGE = 0.51
"""The share of a question's weight (inverse document frequency of its content words) that a
passage must contain: more than one of two rare words. Tuned in `tests/test_rag.py`."""

MEANING_LIMIT_S = 0.15  # how long a question waits for the search by meaning
TIMEOUT_S = 1.0  # when the request for its embedding is given up
FAILURES_LIMIT, REST_S = 3, 30.0  # after so many failures in a row none is made for so long
RETRIES_S = (0.0, 5.0, 30.0, 120.0, 600.0)  # the pauses before each attempt to embed the files

OFF_TOPIC = """
What's the weather like tomorrow?|Who won the game last night?|Do you sell helicopters?
Can you order me a pizza?|How do I renew my passport?|My internet connection is down.
Can you book a hotel for two nights?|How much does a dentist appointment cost?
My car broke down, can you send someone?|When does the train to the airport leave?
Can I rent a house through you?|Is it safe to take aspirin with alcohol?"""
"""Questions that hardly any company covers: how near a model puts them to our passages tells how
near a question must come (`MARGIN` nearer than all but one of them, which we may cover)."""
MARGIN = 1.15

GENERAL = """
able actually agent ago already also always anybody anyone anything anywhere ask available back bad
best better big bigger bit bought bring buy bye call came care chat come could day either else ever
every everything explain find fine first get getting give go going gonna good goodbye got great guy
happen happy hear hello help hey hi hmm hold home hour human instead issue kind know last later
leave left let like little live long longer look lot make many maybe mean mind minute moment month
morning much name need never new next nothing offer often ok okay old operator per person place
please possible problem provide put question quick real really repeat representative right robot run
said say second see send sent short show sir small smaller somebody someone something somewhere soon
sorry sort sound speak start still stop sure take taken talk tell thank thing think today took try
uh um understand use usually wait want way week well whether within without wonder work would yeah
year yep yes yet one two three four five six seven eight nine ten hundred dollar tonight yesterday
monday tuesday wednesday thursday friday saturday sunday"""
"""Words that don't say what a question is about; they count in ranking, not as coverage."""


class EmbeddingFailed(Exception):
    """The embedding model gave nothing usable; the message is safe to log."""


@dataclass(frozen=True)
class Passage:
    """Some sentences of one section; `source` is its file and heading, "returns.md: Refunds"."""

    text: str
    source: str


class Knowledge:
    """The knowledge base, opened once per process; any thread may search it."""

    def __init__(self, settings: Settings) -> None:
        sections = list(read(settings.knowledge_dir))
        self._passages = [passage for passage, _ in sections]
        searched = [f"{headings}\n{passage.text}" for passage, headings in sections]
        synonyms = settings.knowledge_dir / SYNONYMS
        listed = _text(synonyms) if synonyms.is_file() else ""
        self._words = WordIndex(Vocabulary(listed, settings.company_name), searched)
        self.meanings = None
        if settings.has_embeddings and sections:
            self.meanings = MeaningIndex(settings, searched)

    def search(self, question: str, limit: int = 3) -> list[Passage]:
        """The passages for `question`, best first; none if the files don't cover it."""
        terms = self._words.vocabulary.terms(question)
        if not any(term.is_content for term in terms):
            return []
        asked = self.meanings.ask(question) if self.meanings else None
        rankings = [self._words.search(terms)]
        if self.meanings and asked:
            rankings.append(self.meanings.answer(asked))
        return [self._passages[n] for n in fuse(rankings)[:limit]]


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Several rankings as one, by reciprocal rank fusion."""
    points: dict[int, float] = {}
    for ranking in rankings:
        for rank, n in enumerate(ranking, start=1):
            points[n] = points.get(n, 0.0) + 1 / (RRF_K + rank)
    return sorted(points, key=lambda n: -points[n])


def read(folder: Path) -> Iterator[tuple[Passage, str]]:
    """Each passage of the Markdown and text files in `folder`, with all headings above it."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".md", ".txt"))
    for path in paths:
        if path.name != SYNONYMS and path.is_file():
            yield from _sections(path.relative_to(folder).as_posix(), _text(path))
    if not paths:
        logger.warning("the knowledge folder has no Markdown or text files")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _sections(file: str, text: str) -> Iterator[tuple[Passage, str]]:
    headings: dict[int, str] = {}
    for part in re.split(r"^(?=#{1,6}\s)", text, flags=re.MULTILINE):
        body = part
        if heading := re.match(r"(#{1,6})\s+(.*?)[\s#]*(?:\n|$)", part):
            level, body = len(heading[1]), part[heading.end() :]
            headings = {n: h for n, h in headings.items() if n < level} | {level: heading[2]}
        title = headings[max(headings)] if headings else ""
        for piece in _pieces(_plain(body)):
            source = f"{file}: {title}" if title else file
            yield Passage(piece, source), "\n".join(headings.values())


def _plain(markdown: str) -> str:
    """Markdown as it would be read aloud; paragraphs and list items stay apart."""
    text = re.sub(r"<!--.*?-->", "", markdown, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*([-*+>]|\d+\.|```\w*)(\s+|$)", "\n\n", text, flags=re.MULTILINE)
    return re.sub(r"\*\*|__|`", "", text)


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most PASSAGE_CHARS, cut between sentences if they have an end."""
    piece = ""
    for written in re.split(r"\n\s*\n|(?<=[.!?])\s+", text):
        sentence = re.sub(r"(\w)\s*$", r"\1.", written)  # a list item, when read aloud
        for part in textwrap.wrap(sentence, PASSAGE_CHARS, break_on_hyphens=False):
            if piece and len(piece) + len(part) >= PASSAGE_CHARS:
                yield piece
                piece = ""
            piece = f"{piece} {part}".strip()
    if piece:
        yield piece


@dataclass(frozen=True)
class Term:
    """A word or phrase as the index knows it: its stem, and the groups of synonyms it is in."""

    tokens: tuple[str, ...]
    is_content: bool


class Vocabulary:
    """What is one word: stems, synonyms, and which words say nothing."""

    def __init__(self, synonyms: str, company: str) -> None:
        self._stemmer = Stemmer.Stemmer("english")
        self._lock = threading.Lock()  # a Stemmer keeps a buffer
        self._general = {stem for _, stem in self._stems(f"{GENERAL} {company}")}
        self._groups: dict[tuple[str, ...], set[str]] = {}
        for n, line in enumerate(synonyms.splitlines()):
            for phrase in line.split(",") if not line.startswith("#") else ():
                if stems := tuple(stem for _, stem in self._stems(phrase)):
                    self._groups.setdefault(stems, set()).add(f"={n}")
        self._longest = max(map(len, self._groups), default=1)

    def terms(self, text: str) -> list[Term]:
        """The terms of `text`; words of a phrase that has synonyms are no terms by themselves."""
        words, terms, n = self._stems(text), [], 0
        while n < len(words):
            for length in range(min(self._longest, len(words) - n), 1, -1):
                stems = tuple(stem for _, stem in words[n : n + length])
                if stems in self._groups:
                    terms.append(self._term(*stems))
                    n += length
                    break
            else:
                if _says_something(words[n][0]):
                    terms.append(self._term(words[n][1]))
                n += 1
        return list(dict.fromkeys(terms))

    def tokens(self, text: str) -> list[str]:
        """All that `text` can be found by: its phrases, and each of its words."""
        phrases = [term for term in self.terms(text) if " " in term.tokens[0]]
        words = [self._term(stem) for word, stem in self._stems(text) if _says_something(word)]
        return [token for term in words + phrases for token in term.tokens]

    def _term(self, *stems: str) -> Term:
        is_content = len(stems) > 1 or stems[0] not in self._general
        return Term((" ".join(stems), *sorted(self._groups.get(stems, ()))), is_content)

    def _stems(self, text: str) -> list[tuple[str, str]]:
        words = re.findall(r"[^\W_]+", text.lower())
        with self._lock:
            return list(zip(words, self._stemmer.stemWords(words), strict=True))


def _says_something(word: str) -> bool:
    return len(word) > 1 and word not in bm25s.stopwords.STOPWORDS_EN_PLUS and word != "interested"


class WordIndex:
    """Passages by their words: BM25 ranks, coverage decides what may be an answer at all."""

    def __init__(self, vocabulary: Vocabulary, texts: Sequence[str]) -> None:
        self.vocabulary = vocabulary
        self._size = len(texts)
        documents = [vocabulary.tokens(text) for text in texts]
        self._having: dict[str, list[int]] = {}
        for n, tokens in enumerate(documents):
            for token in set(tokens):
                self._having.setdefault(token, []).append(n)
        self._bm25 = bm25s.BM25()
        self._bm25.index(documents or [[""]], show_progress=False)

    def search(self, terms: Sequence[Term]) -> list[int]:
        """The numbers of the passages that may answer, best first."""
        coverage = self._coverage([term for term in terms if term.is_content])
        scores = self._bm25.get_scores([token for term in terms for token in term.tokens])
        scores = np.where(coverage >= COVERAGE, scores[: self._size], 0.0)
        return [int(n) for n in np.argsort(-scores, kind="stable")[:10] if scores[n] > 0]

    def _coverage(self, terms: Sequence[Term]) -> NDArray[np.float64]:
        """For each passage, the share of the terms' weight that it contains (0-1)."""
        covered, total = np.zeros(self._size), 0.0
        for term in terms:
            having = np.zeros(self._size, dtype=bool)
            for token in term.tokens:
                having[self._having.get(token, [])] = True
            count = int(having.sum())
            weight = math.log(1 + (self._size - count + 0.5) / (count + 0.5))
            covered += weight * having
            total += weight
        return covered / total if total else covered


class Embeddings:
    """Vectors for texts, from an OpenAI-compatible API; those of passages are kept on disk."""

    def __init__(self, settings: Settings) -> None:
        self.model, url = settings.embedding_model, settings.openai_base_url
        self._client = openai.OpenAI(api_key=settings.openai_api_key, base_url=url, max_retries=0)
        self._folder = settings.data_dir / "embeddings" / _hash(url, self.model)

    def embed(self, texts: Sequence[str], timeout_s: float) -> NDArray[np.float32]:
        """One row per text. Raises EmbeddingFailed."""
        try:
            ask = self._client.embeddings.create
            reply = ask(model=self.model, input=list(texts), timeout=timeout_s)
            vectors = np.array([item.embedding for item in reply.data], dtype=np.float32)
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise EmbeddingFailed(type(error).__name__) from None  # or no reply of this API
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise EmbeddingFailed("not one vector per text")
        return vectors

    def embed_kept(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row per text, kept on disk. Raises EmbeddingFailed, OSError or ValueError."""
        files = {text: self._folder / f"{_hash(text)}.npy" for text in texts}
        new = [text for text, file in files.items() if not file.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(new), 64):
            batch = new[start : start + 64]
            for text, vector in zip(batch, self.embed(batch, 20.0), strict=True):
                with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                    np.save(file, vector)
                os.replace(file.name, files[text])
        return np.stack([np.load(files[text], allow_pickle=False) for text in texts])


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


class MeaningIndex:
    """Passages by their meaning, in Qdrant: in this process's memory, or on the server set.

    Built beside the first calls, and tried again if that fails; until then it answers nothing.
    Requests that hang are bounded in number and time, and a model that keeps failing is let rest.
    """

    def __init__(self, settings: Settings, texts: Sequence[str]) -> None:
        self.is_ready = threading.Event()
        self._settings = settings
        self._texts = texts
        self._embeddings = Embeddings(settings)
        self._collection = f"knowledge-{_hash(self._embeddings.model, *texts)}"
        self._pool = futures.ThreadPoolExecutor(settings.max_calls, thread_name_prefix="meaning")
        self._slots = threading.BoundedSemaphore(settings.max_calls)
        self._asked: OrderedDict[str, futures.Future[list[int]]] = OrderedDict()
        self._lock = threading.Lock()
        self._failures, self._rests_until = 0, 0.0
        threading.Thread(target=self._build, name="embeddings", daemon=True).start()

    def ask(self, question: str) -> futures.Future[list[int]] | None:
        """Start the search; None if it can't be made now. The same question is asked once."""
        with self._lock:
            if question in self._asked:
                return self._asked[question]
            is_resting = time.monotonic() < self._rests_until
            if not self.is_ready.is_set() or is_resting or not self._slots.acquire(blocking=False):
                return None
            asked = self._asked[question] = self._pool.submit(self._search, question)
            while len(self._asked) > 64:
                self._asked.popitem(last=False)
        asked.add_done_callback(lambda done: self._settle(question, done))
        return asked

    def answer(self, asked: futures.Future[list[int]]) -> list[int]:
        """The numbers of the passages near enough, best first; none if late or failed."""
        try:
            return asked.result(MEANING_LIMIT_S)
        except futures.TimeoutError:
            logger.info("the search by meaning is late")
        except (EmbeddingFailed, ApiException, OSError, ValueError):
            pass  # logged where it happened
        return []

    def _settle(self, question: str, done: futures.Future[list[int]]) -> None:
        self._slots.release()
        error = done.exception()
        with self._lock:
            self._failures = self._failures + 1 if error else 0
            if error:
                self._asked.pop(question, None)
            if self._failures >= FAILURES_LIMIT:
                self._rests_until = time.monotonic() + REST_S
        if error:
            logger.warning("the search by meaning failed", extra={"error": type(error).__name__})

    def _search(self, question: str) -> list[int]:
        vector = self._embeddings.embed([question], TIMEOUT_S)[0]
        return [n for n, score in self._nearest(vector, 10) if score >= self._gate]

    def _nearest(self, vector: NDArray[np.float32], limit: int) -> list[tuple[int, float]]:
        found = self._qdrant.query_points(self._collection, query=vector.tolist(), limit=limit)
        return [(int(point.id), point.score) for point in found.points]

    def _build(self) -> None:
        for pause in RETRIES_S:
            time.sleep(pause)
            try:
                self._store()
            except (EmbeddingFailed, ApiException, OSError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"[:200]
                logger.warning("no embeddings: words alone are searched", extra={"error": problem})
            else:
                return self.is_ready.set()

    def _store(self) -> None:
        """Embed the passages, and find how near a question must come."""
        url, key = self._settings.qdrant_url, self._settings.qdrant_api_key or None
        off_topic = re.split(r"[|\n]", OFF_TOPIC.strip())
        vectors = self._embeddings.embed_kept([*self._texts, *off_topic])
        passages, questions = np.split(vectors, [len(self._texts)])
        self._qdrant = qdrant = (
            QdrantClient(url=url, api_key=key, timeout=5) if url else QdrantClient(":memory:")
        )
        if not qdrant.collection_exists(self._collection):
            size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
            qdrant.create_collection(self._collection, vectors_config=size)
        qdrant.upload_collection(
            self._collection,
            vectors=passages,
            ids=range(len(passages)),
            payload=[{"text": text} for text in self._texts],
            wait=True,
        )
        nearest = sorted(self._nearest(question, 1)[0][1] for question in questions)
        self._gate = MARGIN * nearest[-2]
