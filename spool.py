"""Rows that wait in files while the database is away, one file per call.

A file holds the call's latest row and what was added to it; it is replaced atomically.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """What waits for one call."""

    path: Path
    written: str
    row: dict[str, Any] | None
    added: list[dict[str, Any]]


class Spool:
    """A folder of waiting rows, shared by threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, call_id: str, row: dict[str, Any]) -> None:
        """Let the call's row wait, in place of an earlier state of it."""
        with self._locked("spool.lock"):
            item = self._read(self._path(call_id))
            self._replace(item.path, row, item.added)

    def append(self, call_id: str, row: dict[str, Any]) -> None:
        """Let a row that belongs to the call wait."""
        with self._locked("spool.lock"):
            item = self._read(self._path(call_id))
            self._replace(item.path, item.row, [*item.added, row])

    def items(self) -> list[Item]:
        """All that waits."""
        with self._locked("spool.lock"):
            return [self._read(path) for path in sorted(self.folder.glob("*.json"))]

    def remove(self, item: Item) -> None:
        """Forget what was written, unless more has come since."""
        with self._locked("spool.lock"):
            if item.path.exists() and item.path.read_text() == item.written:
                item.path.unlink()

    def set_aside(self, path: Path, error: Exception) -> None:
        """Keep a file that can't be written, where it is not tried again."""
        logger.error("set aside a record that can't be written: %s", type(error).__name__)
        os.replace(path, path.with_suffix(f".{time.time_ns()}.bad"))

    @contextmanager
    def replaying(self) -> Iterator[bool]:
        """Hold the right to write what waits; False if another has it."""
        with self._locked("replay.lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as is_ours:
            yield is_ours

    @contextmanager
    def _locked(self, name: str, how: int = fcntl.LOCK_EX) -> Iterator[bool]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder.with_name(name), "w") as lock:
            try:
                fcntl.flock(lock, how)
                is_ours = True
            except BlockingIOError:
                is_ours = False
            yield is_ours

    def _path(self, call_id: str) -> Path:
        return self.folder / f"{sha256(call_id.encode()).hexdigest()[:32]}.json"

    def _read(self, path: Path) -> Item:
        if not path.exists():
            return Item(path, "", None, [])
        written = path.read_text()
        try:
            content = json.loads(written, object_hook=_with_times)
            return Item(path, written, content["row"], content["added"])
        except (ValueError, KeyError, TypeError) as error:
            self.set_aside(path, error)
            return Item(path, "", None, [])

    def _replace(self, path: Path, row: dict[str, Any] | None, added: list[dict[str, Any]]) -> None:
        text = json.dumps({"row": row, "added": added}, default=datetime.isoformat)
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, path)


def _with_times(content: dict[str, Any]) -> dict[str, Any]:
    for name, value in content.items():
        if isinstance(value, str) and (name == "at" or name.endswith(("_at", "_until"))):
            content[name] = datetime.fromisoformat(value)
    return content
