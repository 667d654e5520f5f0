"""A Postgres server of the tests' own, where one is installed."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

_SETTINGS = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"]


class Postgres:
    """Runs on a free port in a folder of its own until `stop`."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder
        self._data = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._user = _unprivileged()
        self._names = itertools.count()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def start(self) -> None:
        if self._user:
            shutil.chown(self._data, self._user.pw_name)
        self._run("initdb", "-D", str(self._data), "-U", "tests", "-A", "trust", "--no-sync")
        arguments = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self._port)]
        arguments += [*_SETTINGS, "-k", str(self._data)]
        self._process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, **self._as_user())
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError("Postgres did not start")

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"tests{next(self._names)}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "tests", name)
        return f"postgresql://tests@127.0.0.1:{self._port}/{name}"

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # ends sessions; SIGTERM would wait for them
        self._process.wait(20)
        shutil.rmtree(self._data, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, **self._as_user())

    def _as_user(self) -> dict[str, Any]:
        return {"user": self._user.pw_uid, "group": self._user.pw_gid} if self._user else {}


def _unprivileged() -> pwd.struct_passwd | None:
    """Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def find() -> Path | None:
    """The folder of Postgres's programs; None if it is not installed."""
    folders = [Path(path).parent for path in [shutil.which("initdb") or ""] if path]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "createdb").exists()), None)
