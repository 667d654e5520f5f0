"""A child process that can't outlive us, and whose output is read line by line as it comes.

On Linux the kernel kills the child when the thread that started it ends (PR_SET_PDEATHSIG), so also
when this process is killed outright: start children from the thread whose event loop runs the test.
Elsewhere a child is left behind only if this process dies by SIGKILL.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class ChildFailed(Exception):
    """A child process ended, or didn't say what it was expected to say; the message has its log."""


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port on 127.0.0.1 that nothing listens on now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """One child process: `lines` are its output so far, each with the monotonic time it came."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[tuple[float, str]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        """Exit status; None while it runs (or hasn't been started)."""
        return self._process.returncode if self._process else None

    @property
    def log(self) -> str:
        return "\n".join(line for _, line in self.lines)

    async def start(self, *command: str, env: Mapping[str, str], cwd: Path | None = None) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 22,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
        atexit.register(self.kill)
        self._reader = asyncio.create_task(self._read())

    async def logged(self, text: str, timeout: float = 15.0, *, since: float = 0.0) -> str:
        """The first line containing `text` (after monotonic time `since`), waited for.

        Raises ChildFailed if the process ends first or `timeout` seconds pass.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._news.clear()
            for at, line in list(self.lines):
                if at >= since and text in line:
                    return line
            if self._reader is None or self._reader.done():
                raise ChildFailed(f"{self.name} ended ({self.returncode}):\n{self.log[-3000:]}")
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise ChildFailed(
                    f"{self.name} did not say {text!r} in {timeout} s:\n{self.log[-3000:]}"
                ) from None

    async def ended(self, timeout: float = 10.0) -> int:
        """Exit status, waited for; ChildFailed if it still runs after `timeout` seconds."""
        process = self._running()
        try:
            status = await asyncio.wait_for(process.wait(), timeout)
        except asyncio.TimeoutError:
            raise ChildFailed(f"{self.name} still runs after {timeout} s") from None
        if self._reader:
            await asyncio.wait({self._reader}, timeout=1.0)
        atexit.unregister(self.kill)
        return status

    async def stop(self, sig: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Ask it to end and wait; after `timeout` seconds it is killed."""
        if self._process is None:
            return 0
        self.send(sig)
        try:
            return await self.ended(timeout)
        except ChildFailed:
            self.kill()
            return await self.ended()

    def send(self, sig: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._running().send_signal(sig)

    def kill(self) -> None:
        """SIGKILL to it and to whatever it started."""
        if self._process is not None and self.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise ChildFailed(f"{self.name} was not started")
        return self._process

    async def _read(self) -> None:
        stdout = self._running().stdout
        assert stdout is not None
        while line := await stdout.readline():
            self.lines.append((time.monotonic(), line.decode(errors="replace").rstrip()))
            self._news.set()
        await self._running().wait()
        self._news.set()


def _die_with(parent: int) -> Callable[[], None] | None:
    if _libc is None:
        return None
    prctl = _libc.prctl

    def between_fork_and_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked to be told
            os._exit(1)

    return between_fork_and_exec


def leave(status: int) -> NoReturn:
    """End this process at once: threads of the rtc library may abort it while Python winds down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
