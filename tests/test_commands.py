"""The command-line programs, against a live worker."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

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


async def test_a_call_whose_record_is_elsewhere_says_so(
    studio: Studio, worker: object, tmp_path: Path
) -> None:
    number = new_number()
    studio.network.lines[number] = Line(sip_status=486)
    elsewhere = f"sqlite:///{tmp_path / 'other.db'}"
    status, printed = await run(studio, "commands.call", number, DATABASE_URL=elsewhere)

    assert status == 1
    assert "the worker's DATABASE_URL" in printed


async def test_a_call_without_records_is_not_placed(studio: Studio) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    status, printed = await run(studio, "commands.call", new_number(), DATABASE_URL=nowhere)

    assert status == 1
    assert printed.splitlines() == [
        "the records can't be read (OperationalError): is DATABASE_URL right?"
    ]


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


async def test_what_is_typed_is_known_in_the_next_chat(studio: Studio) -> None:
    number = new_number()
    typed = "I have a three legged cat called Biscuit.\nGoodbye.\n"
    chat = ("commands.chat", "--number", number)
    await run(studio, *chat, typed=typed, OPENAI_API_KEY="")

    assert studio.records().facts(number) == ["I have a three legged cat called Biscuit."]


async def test_check_names_what_is_missing(studio: Studio) -> None:
    status, printed = await run(studio, "commands.check", CARTESIA_API_KEY="")

    assert status == 1
    assert "✓ LiveKit" in printed
    assert "✗ voice: CARTESIA_API_KEY" in printed
