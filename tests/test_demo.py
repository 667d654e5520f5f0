"""The demo as people run it, and that nothing in it is known beforehand."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

import pytest

from simulator.studio import Studio
from simulator.worker import ROOT
from tests.calls import ask, eventually, greeted

pytestmark = pytest.mark.xdist_group("studios")


async def test_the_demo_plays_five_calls_as_scripted(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["-m", "simulator.demo", "--json", str(figures), "--seed", "7"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    shown, _ = await process.communicate()
    assert figures.exists(), shown.decode()
    calls = json.loads(figures.read_text())["calls"]

    assert process.returncode == 0, shown.decode()
    assert [call["disposition"] for call in calls] == [
        "transferred",
        "completed",
        "completed",
        "voicemail",
        "busy",
    ]


async def test_made_up_knowledge_and_a_made_up_fact_are_heard(tmp_path: Path) -> None:
    chance = random.Random()
    thing = chance.choice(["telescope", "canoe", "violin", "greenhouse", "trampoline"])
    price = chance.randrange(200, 900)
    pet = chance.choice(["ferret", "pony", "canary", "tortoise", "goldfish"])
    name = chance.choice(["Pickles", "Domino", "Marble", "Thunder", "Velvet"])
    (tmp_path / "made_up.md").write_text(
        f"# Prices\n\n## The {thing}\n\nThe {thing} costs {price} dollars.\n"
        "\n## Opening hours\n\nWe are open from nine to five.\n"
    )
    async with Studio(KNOWLEDGE_DIR=str(tmp_path)) as studio:
        await studio.worker()
        phone = await greeted(studio)
        answer = await ask(studio, phone, f"How much does the {thing} cost?")
        await ask(studio, phone, f"By the way, I have a {pet} called {name}.")
        await phone.hang_up()
        records = studio.records()
        await eventually(lambda: asyncio.to_thread(records.facts, phone.number))
        records.dispose()
        again = await greeted(studio, from_=phone.number)
        recalled = await ask(studio, again, f"Do you remember what my {pet} is called?")
        await again.hang_up()

        assert f"{price} dollars" in answer
        assert name in recalled
