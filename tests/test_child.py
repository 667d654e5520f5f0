"""Servers and workers are started clean, watched, and never left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from simulator.child import Child, ChildFailed
from simulator.livekit_server import NoLiveKitServer, find_binary
from simulator.worker import Worker, clean_environment
from tests.phones import until

ROOT = Path(__file__).parent.parent


async def test_a_worker_starts_with_only_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "LIVEKIT_URL", "MAX_CALLS", "SIP_ANYTHING"):
        monkeypatch.setenv(name, "the developer's own")
    stub = tmp_path / "stub.py"
    stub.write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye'), sys.exit(3)))\n"
        "print({k: v for k, v in os.environ.items() if 'own' in v or k == 'DATA_DIR'})\n"
        "print('registered worker', flush=True)\n"
        "time.sleep(60)\n"
    )
    worker = Worker({"LIVEKIT_URL": "ws://given"}, script=stub, arguments=())
    await worker.start(10)
    status = await worker.stop()

    assert status == 3
    assert "own" not in worker.log and "bye" in worker.log
    assert str(worker.data_dir) in worker.log
    assert clean_environment()["IGNORE_ENV_FILES"] == "1"


async def test_a_worker_that_dies_or_stays_silent_says_why(tmp_path: Path) -> None:
    stub = tmp_path / "stub.py"
    stub.write_text("import sys; sys.exit('no such setting')\n")
    with pytest.raises(ChildFailed, match="no such setting"):
        await Worker({}, script=stub, arguments=()).start(10)
    stub.write_text("import time; print('thinking', flush=True); time.sleep(60)\n")
    slow = Worker({}, script=stub, arguments=())
    with pytest.raises(ChildFailed, match="thinking"):
        await slow.start(0.5)

    assert await slow.ended(5) == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
async def test_children_die_with_a_parent_that_is_killed() -> None:
    program = (
        "import asyncio, time\n"
        "from simulator.livekit_server import LiveKitServer\n"
        "async def main():\n"
        "    server = LiveKitServer(); await server.start(); print(server.pid, flush=True)\n"
        "    time.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    child = Child("parent")
    await child.start(sys.executable, "-c", program, env=dict(os.environ), cwd=ROOT)
    await until(lambda: child.lines, 10)
    server = int(child.log)
    os.kill(child.pid, signal.SIGKILL)

    await until(lambda: not _runs(server))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_missing_server_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIVEKIT_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NoLiveKitServer, match="task livekit"):
        find_binary()
    monkeypatch.setenv("LIVEKIT_SERVER", str(tmp_path / "nothing"))
    with pytest.raises(NoLiveKitServer, match="LIVEKIT_SERVER"):
        find_binary()
