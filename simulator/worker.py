"""The agent worker as a child process, with nothing in its environment but what it was given."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from config import Settings
from simulator.child import Child, free_port

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ("LIVEKIT_", "OPENAI_", "DEEPGRAM_", "CARTESIA_", "QDRANT_", "SIP_", "DATABASE_", "DBOS_")


class Worker:
    """`python agent.py start` from the repository's root.

    `data_dir` is its own unless the environment given names one, and lasts as long as this object.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        *,
        script: str | Path = "agent.py",
        arguments: tuple[str, ...] = ("start",),
    ) -> None:
        self._command = (sys.executable, str(script), *arguments)
        self._child = Child("worker")
        self.data_dir = Path(env["DATA_DIR"]) if "DATA_DIR" in env else _temporary(self)
        self.health_port = int(env.get("HEALTH_PORT") or free_port())
        self.env = clean_environment() | {
            "DATA_DIR": str(self.data_dir),
            "HEALTH_PORT": str(self.health_port),
            **env,
        }

    @property
    def log(self) -> str:
        """What it printed so far."""
        return self._child.log

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        return self._child.returncode

    async def start(self, timeout: float = 60.0) -> None:
        """Returns when it can take calls; ChildFailed, with its log, if it doesn't come to that."""
        await self._child.start(*self._command, env=self.env, cwd=ROOT)
        try:
            await self._child.logged("registered worker", timeout)
        except BaseException:
            self.kill()
            raise

    async def logged(self, text: str, timeout: float = 15.0, *, since: float = 0.0) -> str:
        """The first log line with `text` after monotonic time `since`, waited for."""
        return await self._child.logged(text, timeout, since=since)

    async def stop(self, sig: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Send `sig`, wait for its end, return its exit status; killed after `timeout` seconds."""
        return await self._child.stop(sig, timeout)

    async def ended(self, timeout: float = 30.0) -> int:
        """Its exit status, once it has ended by itself."""
        return await self._child.ended(timeout)

    def send(self, sig: int) -> None:
        self._child.send(sig)

    def kill(self) -> None:
        """SIGKILL, as if the machine had gone."""
        self._child.kill()


def clean_environment() -> dict[str, str]:
    """This process's environment without any of the worker's settings, so that a developer's own
    can't leak into a run, and with stand-ins on this machine never asked through a proxy."""
    settings = {field.name.upper() for field in fields(Settings)}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in settings and not name.startswith(FOREIGN)
    }
    return kept | {
        "IGNORE_ENV_FILES": "1",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def _temporary(owner: object) -> Path:
    path = Path(tempfile.mkdtemp(prefix="worker-"))
    weakref.finalize(owner, shutil.rmtree, path, ignore_errors=True)
    return path
