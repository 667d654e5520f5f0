"""Rows that wait in files while the database is away, one file per call.

A file holds the call's latest row and what was added to it; it is replaced atomically.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Item:
    """What waits for one call."""

    path: Path
    written: str
    row: dict[str, Any] | None
    added: list[dict[str, Any]]


class Spool:
    """A folder of waiting rows; thread-safe within one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def put(self, call_id: str, row: dict[str, Any]) -> None:
        """Let the call's row wait, in place of an earlier state of it."""
        with self._lock:
            item = self._read(self._path(call_id))
            self._replace(item.path, row, item.added)

    def append(self, call_id: str, row: dict[str, Any]) -> None:
        """Let a row that belongs to the call wait."""
        with self._lock:
            item = self._read(self._path(call_id))
            self._replace(item.path, item.row, [*item.added, row])

    def items(self) -> list[Item]:
        """All that waits."""
        with self._lock:
            return [self._read(path) for path in sorted(self.folder.glob("*.json"))]

    def remove(self, item: Item) -> None:
        """Forget what was written, unless more has come since."""
        with self._lock:
            if item.path.exists() and item.path.read_text() == item.written:
                item.path.unlink()

    def _path(self, call_id: str) -> Path:
        return self.folder / f"{sha256(call_id.encode()).hexdigest()[:32]}.json"

    def _read(self, path: Path) -> Item:
        if not path.exists():
            return Item(path, "", None, [])
        written = path.read_text()
        content = json.loads(written, object_hook=_with_times)
        return Item(path, written, content["row"], content["added"])

    def _replace(self, path: Path, row: dict[str, Any] | None, added: list[dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"row": row, "added": added}, default=datetime.isoformat)
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, path)


def _with_times(content: dict[str, Any]) -> dict[str, Any]:
    for name, value in content.items():
        if isinstance(value, str) and (name == "at" or name.endswith(("_at", "_until"))):
            content[name] = datetime.fromisoformat(value)
    return content
