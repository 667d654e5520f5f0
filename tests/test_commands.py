"""The command-line programs, against a live worker."""

from __future__ import annotations

import asyncio
import sys

import pytest

from simulator.bridge import Line
from simulator.studio import Studio
from simulator.worker import ROOT, clean_environment
from tests.calls import new_number

pytestmark = pytest.mark.xdist_group("calls")


async def run(studio: Studio, *arguments: str, typed: str = "", **env: str) -> tuple[int, str]:
    """Exit status and output of `python -m commands...`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        cwd=ROOT,
        env=clean_environment() | studio.environment() | env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate(typed.encode())
    return process.returncode or 0, printed.decode()


async def test_a_call_is_placed_followed_and_listed(studio: Studio, worker: object) -> None:
    number = new_number()
    studio.network.lines[number] = Line(sip_status=486)
    status, printed = await run(studio, "commands.call", number)
    _, listed = await run(studio, "commands.calls")

    assert status == 1
    assert "busy" in printed
    assert number in listed


async def test_a_call_without_a_worker_says_so() -> None:
    async with Studio() as studio:
        status, printed = await run(studio, "commands.call", "+15550100100")

        assert status == 1
        assert "no worker" in printed


async def test_the_agent_can_be_typed_to(studio: Studio) -> None:
    typed = "How much does furniture delivery cost?\nGoodbye.\n"
    status, printed = await run(studio, "commands.chat", typed=typed, OPENAI_API_KEY="")

    assert status == 0
    assert "stand-in model" in printed
    assert "49 dollars" in printed


async def test_check_names_what_is_missing(studio: Studio) -> None:
    status, printed = await run(studio, "commands.check", CARTESIA_API_KEY="")

    assert status == 1
    assert "✓ LiveKit" in printed
    assert "✗ voice: CARTESIA_API_KEY" in printed
