"""What the end-to-end tests say and wait for, in a phone's words."""

from __future__ import annotations

import asyncio
import itertools
import json
import time

from livekit import api

from records import CallRow
from simulator.bridge import Line
from simulator.phone import Phone
from simulator.studio import Studio

_numbers = itertools.count(15550300001)


def new_number() -> str:
    """A number nobody has called from yet."""
    return f"+{next(_numbers)}"


def heard(studio: Studio, phone: Phone, since: float) -> str:
    """What the phone recognised of the agent's words since monotonic time `since`."""
    pcm = phone.recording().since(since).heard
    return " ".join(found.text for found in studio.stand_ins.agent_ear.transcribe(pcm))


async def hears(studio: Studio, phone: Phone, words: str, since: float) -> None:
    """Wait until the agent has said `words` since monotonic time `since`."""
    deadline = time.monotonic() + 15
    while words not in heard(studio, phone, since):
        assert time.monotonic() < deadline, f"never heard: {words}"
        await asyncio.sleep(0.5)  # a look at all that was heard holds up the phones' voices


async def greeted(studio: Studio, **dial: object) -> Phone:
    """An inbound call, greeted to the end."""
    phone = await studio.network.dial(**{"from_": new_number()} | dial)  # type: ignore[arg-type]
    await phone.agent_says(since=phone.times["dialed"], quiet_s=0.5)
    return phone


async def ask(studio: Studio, phone: Phone, words: str, *, timeout: float = 15.0) -> str:
    """Say `words` and return the agent's reply."""
    said = await phone.say(words)
    await phone.agent_says(timeout, since=said.end, quiet_s=0.7)
    return heard(studio, phone, said.end)


async def dispatched(
    studio: Studio, line: Line | None = None, **metadata: object
) -> tuple[str, str]:
    """Ask for an outbound call; its room and number."""
    number = new_number()
    if line:
        studio.network.lines[number] = line
    request = {"phone_number": number} | metadata
    return await studio.network.dispatch(json.dumps(request)), number


async def outcome(studio: Studio, line: Line | None = None, **metadata: object) -> CallRow:
    """The record of an outbound call to `line`."""
    room, _ = await dispatched(studio, line, **metadata)
    return await studio.closed(room, 30)


async def room_is_gone(studio: Studio, room: str, timeout: float = 2.0) -> bool:
    """Whether the room ends in `timeout` seconds: beside the record's closing, not before it."""
    deadline = time.monotonic() + timeout
    async with studio.network.api() as livekit:
        while (await livekit.room.list_rooms(api.ListRoomsRequest(names=[room]))).rooms:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
    return True


async def eventually(claim: object, timeout: float = 10.0) -> None:
    """Wait until the coroutine function `claim` returns something true."""
    deadline = time.monotonic() + timeout
    while not await claim():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.05)
