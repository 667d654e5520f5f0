"""Inbound calls, end to end: real LiveKit server, plugins, VAD and turn detection."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing

import pytest

from simulator.phone import CallOver
from simulator.studio import Studio
from tests.calls import ask, eventually, greeted, heard, hears, new_number, room_is_gone

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.xdist_group("calls")]


async def test_a_caller_is_greeted_by_an_ai_and_answered(studio: Studio) -> None:
    phone = await greeted(studio)
    greeting = heard(studio, phone, phone.times["dialed"])
    answer = await ask(studio, phone, "How much does furniture delivery cost?")
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert "AI assistant" in greeting
    assert "49 dollars" in answer
    assert (row.disposition, row.ended_by) == ("completed", "caller")
    assert row.number == phone.number
    assert row.turns == 1


@pytest.mark.race
async def test_hanging_up_during_the_greeting_is_abandoned(studio: Studio) -> None:
    phone = await studio.network.dial(from_=new_number())
    await phone.agent_speaks(since=phone.times["dialed"])
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert (row.disposition, row.ended_by) == ("abandoned", "caller")
    assert await room_is_gone(studio, phone.room_name)


@pytest.mark.race
async def test_hanging_up_while_the_worker_prepares_is_abandoned(studio: Studio) -> None:
    phone = await studio.network.dial(from_=new_number())
    await phone.hang_up()
    row = await studio.closed(phone.room_name, 30)

    assert row.disposition == "abandoned"
    assert await room_is_gone(studio, phone.room_name)


@pytest.mark.race
async def test_hanging_up_while_the_agent_speaks_closes_the_record(studio: Studio) -> None:
    phone = await greeted(studio)
    said = await phone.say("How long do I have to return something?")
    await phone.agent_speaks(since=said.end)
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert (row.disposition, row.ended_by) == ("completed", "caller")


@pytest.mark.race
async def test_hanging_up_during_a_tool_closes_the_record(studio: Studio) -> None:
    phone = await greeted(studio, transfer="no_notify")
    await phone.say("Could you put me through to a person, please?")
    await eventually(lambda: asyncio.sleep(0, bool(phone.transfers)))
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert (row.disposition, row.ended_by) == ("completed", "caller")


async def test_what_is_said_over_the_greeting_is_answered(studio: Studio) -> None:
    phone = await studio.network.dial(from_=new_number())
    await phone.agent_speaks(since=phone.times["dialed"])
    answer = await ask(studio, phone, "How much does furniture delivery cost?")
    await phone.hang_up()

    assert "49 dollars" in answer


@pytest.mark.parametrize(
    ("transfer", "code"), [(486, "busy"), (603, "refused"), ("no_notify", "unanswered")]
)
async def test_a_transfer_that_fails_keeps_the_caller(
    studio: Studio, transfer: str | int, code: str
) -> None:
    phone = await greeted(studio, transfer=transfer)
    said = await phone.say("Could you put me through to a person, please?")
    await eventually(lambda: asyncio.sleep(0, bool(phone.transfers)))
    await hears(studio, phone, "did not work", said.end)
    await phone.agent_quiet()
    answer = await ask(studio, phone, "How much does furniture delivery cost?")
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert "49 dollars" in answer
    assert [(t.name, t.code) for t in row.tool_calls] == [("transfer_call", code)]
    assert row.disposition == "completed"


async def test_a_model_that_fails_for_a_turn_is_heard_as_an_apology(studio: Studio) -> None:
    phone = await greeted(studio)
    for fault in ("refuse", "hang", "cut"):
        studio.stand_ins.fault("llm", fault, times=3)  # some are speculative
        said = await phone.say("How long do I have to return something?")
        start, _ = await phone.agent_says(since=said.end)
        words = heard(studio, phone, said.end)
        studio.stand_ins.clear_faults()

        assert "sorry" in words.lower()
        assert start - said.end <= 4.0
    answer = await ask(studio, phone, "How much does furniture delivery cost?")
    await phone.hang_up()

    assert "49 dollars" in answer


async def test_a_caller_who_can_not_be_heard_is_told_so(studio: Studio) -> None:
    studio.stand_ins.fault("stt", "refuse", times=1000)
    try:
        phone = await studio.network.dial(from_=new_number())
        await phone.ended(30)
        row = await studio.closed(phone.room_name)
    finally:
        studio.stand_ins.clear_faults()

    assert "I can't hear you" in heard(studio, phone, phone.times["dialed"])
    assert (row.disposition, row.ended_by) == ("failed", "system")


async def test_a_call_in_which_nothing_can_be_said_ends(studio: Studio) -> None:
    studio.stand_ins.fault("tts", "refuse", times=1000)
    try:
        phone = await studio.network.dial(from_=new_number())
        await phone.ended(10)
        row = await studio.closed(phone.room_name)
    finally:
        studio.stand_ins.clear_faults()

    assert (row.disposition, row.ended_by) == ("failed", "system")
    assert "tts_error" in row.reason


async def test_a_model_that_says_nothing_is_heard_as_an_apology(studio: Studio) -> None:
    phone = await greeted(studio)
    studio.stand_ins.fault("llm", "empty", times=3)
    reply = await ask(studio, phone, "How long do I have to return something?")
    studio.stand_ins.clear_faults()
    await phone.hang_up()

    assert "sorry" in reply.lower()


async def test_a_tool_that_takes_long_says_so(studio: Studio) -> None:
    phone = await greeted(studio)
    with closing(sqlite3.connect(studio.data_dir / "records.db")) as database:
        database.execute("begin immediate")  # nobody else can write
        said = await phone.say("Please remember that I like the blue chair.")
        await hears(studio, phone, "moment", said.end)
        database.rollback()
    await hears(studio, phone, "Noted", said.end)
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert [(t.name, t.code) for t in row.tool_calls] == [("remember", "ok")]


async def test_a_withheld_number_is_served_and_not_remembered(studio: Studio) -> None:
    phone = await greeted(studio, withheld=True)
    reply = await ask(studio, phone, "Please remember that I like the blue chair.")
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert "withheld" in reply
    assert row.number is None
    assert row.disposition == "completed"


async def test_three_callers_at_once_do_not_mix(studio: Studio) -> None:
    pets = ["hamster called Pepper", "parrot called Mango", "rabbit called Clover"]
    phones = await asyncio.gather(*(greeted(studio) for _ in pets))
    for phone, pet in zip(phones, pets, strict=True):
        await ask(studio, phone, f"Please remember that I have a {pet}.")
    answers = await asyncio.gather(
        *(ask(studio, phone, "How much does furniture delivery cost?") for phone in phones)
    )
    await asyncio.gather(*(phone.hang_up() for phone in phones))
    rows = [await studio.closed(phone.room_name) for phone in phones]
    records = studio.records()

    async def remembered() -> bool:
        return all(records.facts(phone.number) for phone in phones)

    await eventually(remembered)
    assert [answer for answer in answers if "49 dollars" not in answer] == []
    assert [row.number for row in rows] == [phone.number for phone in phones]
    facts = [records.facts(phone.number) for phone in phones]
    assert facts == [[f"I have a {pet}."] for pet in pets]


async def test_a_dispatch_nobody_calls_is_abandoned_or_names_its_keys(studio: Studio) -> None:
    empty = await studio.network.dispatch("")
    foreign = await studio.network.dispatch('{"theme": "dark"}')
    rows = [await studio.closed(room, 25) for room in (empty, foreign)]

    assert [row.disposition for row in rows] == ["abandoned", "not_dialed"]
    assert "theme" in rows[1].reason


async def test_no_line_runs_on_for_ever() -> None:
    async with Studio(SILENCE_LIMIT_S="3", MAX_CALL_S="20") as studio:
        await studio.worker()
        await asyncio.gather(_silent(studio), _talking(studio), _changes_their_mind(studio))


async def _silent(studio: Studio) -> None:
    phone = await greeted(studio)
    asked, _ = await phone.agent_says(since=time.monotonic(), quiet_s=0.4)
    await phone.ended(20)
    row = await studio.closed(phone.room_name)

    assert "still there" in heard(studio, phone, asked - 0.1)
    assert (row.disposition, row.ended_by) == ("silent", "system")


async def _changes_their_mind(studio: Studio) -> None:
    phone = await greeted(studio, transfer="no_notify")
    await phone.say("Could you put me through to a person, please?")
    await eventually(lambda: asyncio.sleep(0, bool(phone.transfers)))
    await phone.agent_quiet()
    await asyncio.sleep(2)  # more than the silence that is asked about
    await phone.say("Never mind, goodbye.")
    await phone.ended(8)
    row = await studio.closed(phone.room_name)

    assert (row.disposition, row.ended_by) == ("completed", "agent")
    assert row.destination is None


async def _talking(studio: Studio) -> None:
    phone = await greeted(studio)
    with pytest.raises(CallOver):
        while True:
            await phone.say("How much does furniture delivery cost?")
            await phone.agent_says()
    row = await studio.closed(phone.room_name)

    assert "time is up" in heard(studio, phone, phone.times["gone"] - 6)
    assert row.disposition == "time_limit"


async def test_a_crash_in_the_entrypoint_leaves_a_record_and_no_room() -> None:
    async with Studio() as studio:
        await studio.worker(CARTESIA_API_KEY="")
        phone = await studio.network.dial(from_=new_number())
        row = await studio.closed(phone.room_name)
        await phone.ended()

        assert (row.disposition, row.ended_by) == ("failed", "system")
