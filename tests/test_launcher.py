"""The launcher and the LiveKit server it builds."""

import subprocess
from pathlib import Path

import pytest

from simulator.livekit_server import VERSION

ROOT = Path(__file__).parent.parent


def test_the_livekit_server_that_is_built_is_the_one_looked_for() -> None:
    pinned = (ROOT / "simulator" / "livekit-server" / "go.mod").read_text()

    assert f"github.com/livekit/livekit-server v{VERSION} " in pinned


@pytest.mark.parametrize("script", ["task", "simulator/livekit-server/build.sh"])
def test_shell_scripts_are_plain_posix(script: str) -> None:
    checked = subprocess.run(["sh", "-n", script], cwd=ROOT, capture_output=True, check=False)

    assert checked.returncode == 0, checked.stderr


def test_the_launcher_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "task").write_text((ROOT / "task").read_text())
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 || exit 1\n')
    old.chmod(0o755)
    (tmp_path / "bin" / "dirname").symlink_to("/usr/bin/dirname")

    run = subprocess.run(
        ["/bin/sh", str(tmp_path / "task")],
        env={"PATH": str(old.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 1
    assert "Python 3.8.1" in run.stderr
    assert "apt-get install python3 python3-venv" in run.stderr


def test_a_remade_environment_gets_its_packages_anew(tmp_path: Path) -> None:
    (tmp_path / "task").write_text((ROOT / "task").read_text())
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        '"-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;\n'
        '"-m pip install"*) echo "$*" >>pip.log ;;\nesac\n'
    )
    python.chmod(0o755)
    (tmp_path / ".venv").mkdir()
    for name in ("requirements.txt", ".venv/installed-requirements.txt"):
        (tmp_path / name).write_text("package\n")

    for _ in range(2):
        subprocess.run(
            ["/bin/sh", str(tmp_path / "task"), "--setup", "requirements.txt"],
            env={"PATH": f"{python.parent}:/usr/bin:/bin"},
            check=True,
        )

    assert (tmp_path / "pip.log").read_text() == "-m pip install --quiet -r requirements.txt\n"
