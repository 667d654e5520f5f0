"""A real livekit-server as a child process, on free ports of this machine's loopback."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import sys
import time
from pathlib import Path

import psutil

from simulator.child import Child, ChildFailed, free_port

VERSION = "1.13.5"
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 0.5


class NoLiveKitServer(Exception):
    """livekit-server can't be run here; the message says what to do."""


class LiveKitServer:
    """`await start()`, then `url`, `key` and `secret` work until `await stop()`."""

    def __init__(self, binary: str | Path | None = None) -> None:
        self.binary = Path(binary) if binary else find_binary()
        self.key = "devkey"
        self.secret = secrets.token_hex(24)
        self.port = 0
        self._child = Child("livekit-server")

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._child.log

    @property
    def pid(self) -> int:
        return self._child.pid

    async def start(self) -> None:
        """Raises NoLiveKitServer if it can't run here, ChildFailed if it doesn't come up."""
        check_interfaces()
        self.port = free_port()
        config = _config(self.port, free_port(socket.SOCK_DGRAM), self.key, self.secret)
        env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        await self._child.start(str(self.binary), env=env | {"LIVEKIT_CONFIG": config})
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await _answers(self.port):
            if self._child.returncode is not None or time.monotonic() > deadline:
                self._child.kill()
                raise ChildFailed(f"livekit-server did not start:\n{self.log[-2000:]}")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """It ends in 5 ms, or not at all if it was told to within 0.1 s of its start."""
        await self._child.stop(timeout=STOP_TIMEOUT_S)


def find_binary() -> Path:
    """LIVEKIT_SERVER, else the one on the PATH, else the one that `./task livekit` builds."""
    if named := os.environ.get("LIVEKIT_SERVER"):
        if Path(named).is_file():
            return Path(named)
        raise NoLiveKitServer(f"LIVEKIT_SERVER: there is no file {named}")
    if found := shutil.which("livekit-server"):
        return Path(found)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = cache / "customer-support-agent" / f"livekit-server-{VERSION}"
    if built.is_file():
        return built
    raise NoLiveKitServer(
        f"no livekit-server: run ./task livekit to build version {VERSION}, or set LIVEKIT_SERVER"
    )


def check_interfaces() -> None:
    """LiveKit's client library finds no route to the server if only the loopback is up."""
    up = [name for name, stats in psutil.net_if_stats().items() if stats.isup]
    if all(name.startswith("lo") for name in up):
        raise NoLiveKitServer(
            "only the loopback interface is up, and LiveKit's client library needs another one: "
            "any will do, without a route "
            "(as root: ip link add sim0 type dummy && ip addr add 192.0.2.1/32 dev sim0 "
            "&& ip link set sim0 up)"
        )


def _config(port: int, udp_port: int, key: str, secret: str) -> str:
    """The server's configuration; JSON, which is YAML.

    `tcp_port` would listen on all interfaces, whatever `bind_addresses` says. Without
    `stun_servers` clients go to public ones; with the server's own `udp_port` there they never
    connect by UDP (media is taken for STUN); on the discard port nobody answers, as it should be.
    """
    return json.dumps(
        {
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "keys": {key: secret},
            "logging": {"level": "warn", "pion_level": "error"},
            "rtc": {
                "use_external_ip": False,
                "node_ip": "127.0.0.1",
                "enable_loopback_candidate": True,
                "interfaces": {"includes": [LOOPBACK]},
                "udp_port": udp_port,
                "tcp_port": 0,
                "stun_servers": ["127.0.0.1:9"],
            },
            "room": {"empty_timeout": 30, "departure_timeout": 5},
        }
    )


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
