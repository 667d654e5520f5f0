"""What is known about callers, kept by Mem0 and learned by work that outlives the call."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import re
import sqlite3
import threading
import uuid
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from dbos._error import DBOSException
from openai import OpenAI, OpenAIError
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException
from sqlalchemy.exc import SQLAlchemyError

from config import Settings
from durable import Durable
from facts import by_overlap, repeats, statements, telling_words
from records import Records, RecordsUnavailable, Work

logger = logging.getLogger(__name__)

MAX_FACTS, MAX_FOUND, MAX_LISTED = 20, 5, 10_000
HASHED_DIMENSIONS = 512
LEARN_TIMEOUT_S, EMBED_TIMEOUT_S, STORE_TIMEOUT_S = 30.0, 3.0, 5
LEARN_MAX_TOKENS = 8_000
KEEP_WORDS = timedelta(hours=24)
"""How long what was said may wait for a model to learn from it."""
COLLECTIONS = "memories_"
STORE_ERRORS = (OSError, RuntimeError, ValueError, sqlite3.Error, OpenAIError, ApiException)

INSTRUCTIONS = (
    "The messages are the words of one telephone caller. Keep only lasting facts about the caller "
    "that will help in later calls. Never keep card numbers, passwords, PINs or security codes."
)


class LearningFailed(Exception):
    """A model did not do its part; the work is to be tried again."""


class Memory:
    """Callers' memories: one process owns the store and does the work, all read and add."""

    def __init__(self, settings: Settings, records: Records) -> None:
        self._settings = settings
        self._records = records
        self._durable = Durable(settings)
        self._store: Store | None = None
        self._is_running = False
        self._tending = threading.Lock()

    def start(self) -> None:
        """Own the store and take up unfinished work, unless another process does."""
        self.tend()

    def tend(self) -> None:
        """Take over from an owner that died, and bring waiting work to the queue."""
        with self._tending:
            try:
                is_owner = self._durable.own()
                if not (is_owner and self._is_running):
                    self._stop()
                self._condense_old()
                if is_owner and (self._is_running or self._run()):
                    pending = self._records.pending_work()
                    self._durable.tend({work.id: work.created_at.timestamp() for work in pending})
            except (RecordsUnavailable, SQLAlchemyError, DBOSException) as error:
                logger.warning("memory work waits: %s", type(error).__name__)

    def _condense_old(self) -> None:
        """Of words that no model has learned from in time, keep what is found without one."""
        since = datetime.now(timezone.utc) - KEEP_WORDS
        for work in self._records.pending_work():
            if work.kind == "learn" and work.created_at < since:
                self._records.condense_work(work.id, statements(work.content))
                self._records.truncate_log()

    def _run(self) -> bool:
        try:
            self._store = Store(self._settings)
        except STORE_ERRORS as error:
            logger.warning("the memory store can't be opened: %s", type(error).__name__)
            return False
        self._durable.launch(self.work)
        self._is_running = True
        return True

    def _stop(self) -> None:
        self._durable.halt()
        self._is_running = False
        if self._store:
            self._store.close()
            self._store = None

    def close(self) -> None:
        with self._tending:
            self._stop()
            self._durable.close()

    def known(self, number: str) -> list[str]:
        """What is known about a caller, oldest first. Raises RecordsUnavailable, as most below."""
        if self._records.pending_forget(number):
            return []
        return self._records.facts(number)

    def search(self, number: str, topic: str) -> list[str]:
        """What is known about a caller on a topic, best first."""
        facts, store = self.known(number), self._store
        if not facts or store is None:
            return by_overlap(facts, topic)
        try:
            return store.search(number, topic) or by_overlap(facts, topic)
        except STORE_ERRORS as error:
            logger.warning("searched by words only: %s", type(error).__name__)
            return by_overlap(facts, topic)

    def remember(self, number: str, call_id: str, fact: str) -> None:
        """Keep a fact that the caller asked to be kept."""
        self._add(Work(f"remember-{uuid.uuid4().hex}", "remember", call_id, number, [fact]))

    def learn(self, number: str, call_id: str, words: list[str]) -> None:
        """Learn from what the caller said in a call, once per call; raises nothing."""
        work = Work(f"learn-{call_id}", "learn", call_id, number, words)
        if self._records.leave_work(work):
            self._durable.enqueue(work.id)

    def forget(self, number: str, call_id: str) -> None:
        """Forget the caller: nothing is known from now on, and all traces are deleted."""
        work = Work(f"forget-{uuid.uuid4().hex}", "forget", call_id, number, [])
        # The wish is committed first: whatever dies next, it is carried out.
        self._records.add_work(work)
        for other in self._records.pending_work():
            if other.number == number and other.kind != "forget":
                self._records.remove_work(other.id)
        self._records.set_facts(number, [])
        self._durable.enqueue(work.id)

    def _add(self, work: Work) -> None:
        self._records.add_work(work)
        self._durable.enqueue(work.id)

    def work(self, work_id: str) -> None:
        """Do one piece of work; it may have been begun before, or cancelled."""
        try:
            if work := self._records.work(work_id):
                for earlier in self._forgets_before(work):
                    self._do(earlier)
                self._do(work)
        except Exception as error:
            # DBOS would keep the error, and with it perhaps what was said.
            failure = type(error.__cause__ or error).__name__
            logger.warning("memory work failed: %s", failure)
            raise LearningFailed(failure) from None

    def _forgets_before(self, work: Work) -> list[Work]:
        """A forget that failed and is yet to be repeated would delete what this keeps."""
        return [
            other
            for other in self._records.pending_work()
            if (other.kind, other.number) == ("forget", work.number)
            and other.created_at < work.created_at
        ]

    def _do(self, work: Work) -> None:
        if (store := self._store) is None:
            raise LearningFailed("the store is closed")
        if work.kind == "forget":
            store.delete(work.number)
            self._records.forget(work)
        else:
            store.learn(work)
            self._records.set_facts(work.number, store.facts(work.number))
            self._records.remove_work(work.id)
        self._records.truncate_log()


class Store:
    """Mem0 with its vectors in an embedded Qdrant, or in a Qdrant server."""

    def __init__(self, settings: Settings) -> None:
        self._infers = settings.has_memory_model
        self._lock = threading.RLock()
        self._mem0 = _open_mem0(settings)
        self._client: Any = self._mem0.vector_store.client
        if not settings.qdrant_url:
            self._tame_embedded()
        self._extracted: list[str] = []
        self._generate = self._mem0.llm.generate_response
        self._mem0.llm.generate_response = self._extract

    def _tame_embedded(self) -> None:
        """Its arrays diverge when threads use it at once, and its files keep what is deleted.

        A lock around all of Mem0 would be held during model calls.
        """
        vectors = self._mem0.vector_store
        for name in ("insert", "search", "search_batch", "keyword_search", "get", "delete", "list"):
            setattr(vectors, name, self._alone(getattr(vectors, name)))
        for collection in self._client._client.collections.values():
            collection.storage.storage.execute("PRAGMA secure_delete=ON")

    def _alone(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return act(*args, **kwargs)

        return run

    def close(self) -> None:
        with self._lock:
            self._mem0.close()
            self._client.close()

    def search(self, number: str, topic: str) -> list[str]:
        found = self._mem0.search(topic, filters={"user_id": number}, top_k=MAX_FOUND)
        return [str(memory["memory"]) for memory in found["results"]]

    def learn(self, work: Work) -> None:
        """Keep what this work holds, in place of what an earlier try kept."""
        self.delete(work.number, work_id=work.id)
        known = self._texts(work.number, call_id=work.call_id)
        if work.kind == "learn" and self._infers:
            for memory in self._add(work, work.content, infer=True):
                if any(repeats(memory["memory"], other) for other in known):
                    self._mem0.delete(memory["id"])
            return
        for fact in statements(work.content) if work.kind == "learn" else work.content:
            if not any(repeats(fact, other) for other in known):
                self._add(work, [fact], infer=False)
                known.append(fact)

    def _add(self, work: Work, words: list[str], *, infer: bool) -> list[dict[str, str]]:
        self._extracted = []
        messages = [{"role": "user", "content": said} for said in words]
        metadata = {"call_id": work.call_id, "work_id": work.id}
        try:
            added = self._mem0.add(
                messages, user_id=work.number, metadata=metadata, infer=infer, prompt=INSTRUCTIONS
            )
        finally:
            self._purge_messages()
        # Mem0 skips what it could not embed, and says nothing.
        if not set(self._extracted) <= set(self._texts(work.number)):
            raise LearningFailed("not all that was learned is stored")
        return list(added["results"])

    def _extract(self, *args: Any, **kwargs: Any) -> str:
        """Mem0 takes a reply that is no JSON for one without facts: the call would be lost."""
        reply: str = self._generate(*args, **kwargs) or ""
        try:
            memories = json.loads(reply[reply.find("{") : reply.rfind("}") + 1])["memory"]
            self._extracted = [memory["text"] for memory in memories if memory.get("text")]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LearningFailed("the model's reply can't be read") from None
        return reply

    def _purge_messages(self) -> None:
        """Mem0 keeps the last messages, and would give them to the model next time."""
        with self._mem0.db._lock:
            self._mem0.db.connection.executescript("DELETE FROM messages; DELETE FROM history")

    def facts(self, number: str) -> list[str]:
        """The latest memories of a caller, oldest first, each once."""
        latest = reversed(self._texts(number))
        once = {" ".join(fact.lower().split()): fact for fact in latest}
        return list(reversed(list(once.values())[:MAX_FACTS]))

    def _texts(self, number: str, **fields: str) -> list[str]:
        """A caller's memories, oldest first, also those of embedders used before."""
        found, wanted = [], _matching(user_id=number, **fields)
        with self._lock:
            for name in self._collections():
                points, _ = self._client.scroll(name, wanted, limit=MAX_LISTED)
                found += [point.payload for point in points if "call_id" in point.payload]
        found.sort(key=lambda payload: datetime.fromisoformat(payload["created_at"]))
        return [payload["data"] for payload in found]

    def delete(self, number: str, **fields: str) -> None:
        """Delete a caller's memories that have these fields; by default all of them."""
        wanted = models.FilterSelector(filter=_matching(user_id=number, **fields))
        with self._lock:
            for name in self._collections():
                self._client.delete(name, points_selector=wanted)

    def _collections(self) -> list[str]:
        names = [c.name for c in self._client.get_collections().collections]
        return [name for name in names if name.startswith(COLLECTIONS)]


def _matching(**fields: str) -> models.Filter:
    value, has = models.MatchValue, models.FieldCondition
    return models.Filter(must=[has(key=k, match=value(value=v)) for k, v in fields.items()])


def _open_mem0(settings: Settings) -> Any:
    # Mem0 reads these when it is imported: it would phone home and write to the home directory,
    # and a key of OpenRouter would send callers' words there.
    os.environ["MEM0_TELEMETRY"] = "False"
    os.environ["MEM0_DIR"] = str(settings.data_dir.absolute() / "mem0")
    os.environ.pop("OPENROUTER_API_KEY", None)
    logging.getLogger("mem0").setLevel(logging.CRITICAL)
    mem0 = importlib.import_module("mem0")
    factory = importlib.import_module("mem0.utils.factory").EmbedderFactory
    factory.provider_to_class["huggingface"] = f"{__name__}.HashedEmbedder"
    key, url = settings.openai_api_key or "none", settings.openai_base_url
    client = OpenAI(api_key=key, base_url=url, timeout=LEARN_TIMEOUT_S, max_retries=0)
    embeddings = client.with_options(timeout=EMBED_TIMEOUT_S)
    size = HASHED_DIMENSIONS
    if settings.has_embeddings:
        size = _length(embeddings, settings.embedding_model)
    account = {"api_key": key, "openai_base_url": url}
    opened = mem0.Memory.from_config(_config(settings, account, size))
    opened.llm.client = client
    if settings.has_embeddings:
        opened.embedding_model.client = embeddings
    return opened


def _length(client: OpenAI, model: str) -> int:
    """How many numbers an embedding of this model has."""
    try:
        reply = client.embeddings.create(model=model, input=["length"], encoding_format="float")
        return len(reply.data[0].embedding)
    except (AttributeError, IndexError, TypeError):
        raise ValueError("the reply holds no embedding") from None


def _config(settings: Settings, account: dict[str, str], size: int) -> dict[str, Any]:
    name, embedder = "hashed", {"provider": "huggingface", "config": {}}
    if settings.has_embeddings:
        name = settings.embedding_model
        embedder = {"provider": "openai", "config": account | {"model": name}}
    llm = account | {"model": settings.memory_model, "max_tokens": LEARN_MAX_TOKENS}
    vectors: dict[str, Any] = {
        "collection_name": COLLECTIONS + re.sub(r"\W+", "_", f"{name}_{size}"),
        "embedding_model_dims": size,
    }
    if settings.qdrant_url:
        key = settings.qdrant_api_key or None
        # Mem0 would open an embedded store for a URL it can't parse, and wait for ever.
        vectors["client"] = QdrantClient(settings.qdrant_url, api_key=key, timeout=STORE_TIMEOUT_S)
    else:
        vectors |= {"path": str(settings.data_dir / "memories"), "on_disk": True}
    return {
        "vector_store": {"provider": "qdrant", "config": vectors},
        "embedder": embedder,
        "llm": {"provider": "openai", "config": llm},
        "history_db_path": ":memory:",
    }


class HashedEmbedder:
    """Embeds words and their parts by hash: likeness of wording, without a model."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def embed(self, words: str, memory_action: str = "") -> list[float]:
        vector = [0.0] * HASHED_DIMENSIONS
        for word in telling_words(words):
            padded = f"<{word}>"
            for part in {padded, *(padded[i : i + 4] for i in range(len(padded) - 3))}:
                hashed = zlib.crc32(part.encode())
                vector[hashed % HASHED_DIMENSIONS] += 1.0 if hashed & 0x80000000 else -1.0
        length = math.hypot(*vector)
        return [x / length for x in vector] if length else [1.0, *vector[1:]]

    def embed_batch(self, texts: list[str], memory_action: str = "") -> list[list[float]]:
        return [self.embed(words) for words in texts]
