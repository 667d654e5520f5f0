"""Outbound calls, end to end: who answers, and every way of not being answered."""

from __future__ import annotations

import asyncio
import json

import pytest
from livekit import api

from simulator import speech
from simulator.bridge import Line
from simulator.phone import Phone
from simulator.recording import speech_segments
from simulator.studio import Studio
from tests.calls import dispatched, heard, new_number, outcome, room_is_gone

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.xdist_group("calls")]

MESSAGE = "Hello, this is the AI assistant of Larkfield Home. Your table is ready to be collected."


async def answered(studio: Studio, **metadata: object) -> Phone:
    """An outbound call that was picked up, in silence."""
    _, number = await dispatched(studio, Line(), **metadata)
    phone = await studio.network.dialled(number)
    await phone.became_active()
    return phone


async def test_a_person_is_spoken_to_right_after_their_first_word(studio: Studio) -> None:
    phone = await answered(studio, name="Jo", purpose="I am calling about your lamp.")
    said = await phone.say("Hello?")
    start, _ = await phone.agent_says(since=said.end)
    opening = heard(studio, phone, said.end)
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert start - said.end < 2.0  # sooner than if nothing had been said
    assert "AI assistant" in opening
    assert "lamp" in opening
    assert (row.disposition, row.ended_by, row.number) == ("completed", "caller", phone.number)


async def test_a_silent_callee_is_spoken_to_after_two_seconds(studio: Studio) -> None:
    phone = await answered(studio)
    active = phone.times["active"]
    start = await phone.agent_speaks(since=active)
    await phone.agent_quiet()
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert 1.9 <= start - active <= 3.0
    assert row.disposition == "abandoned"


async def test_a_callee_who_is_not_understood_is_spoken_to(studio: Studio) -> None:
    phone = await answered(studio)
    mumbled = await phone.say(speech.synthesize("Mumble mumble.", voice="callee"))
    start = await phone.agent_speaks(since=mumbled.end)
    await phone.hang_up()

    assert 1.5 <= start - mumbled.end <= 4.0


@pytest.mark.parametrize("beep_after_s", [0.3, 3.9, None])
async def test_a_message_lies_after_the_beep_or_after_silence(
    studio: Studio, beep_after_s: float | None
) -> None:
    phone = await answered(studio, voicemail_message=MESSAGE)
    greeting = await phone.say(
        "Hello, you've reached Sam. [0.7] Please leave a message after the tone.",
        voice="recording",
    )
    free = greeting.end
    if beep_after_s is not None:
        await asyncio.sleep(beep_after_s)
        free = (await phone.say(speech.beep())).end
    await phone.ended(30)
    row = await studio.closed(phone.room_name)
    spoken = speech_segments(phone.recording().heard)

    assert "ready to be collected" in heard(studio, phone, free)
    assert spoken[0].start_s + phone.recording().started >= free
    assert (row.disposition, row.ended_by, row.message_left) == ("voicemail", "agent", True)


async def test_without_a_message_a_machine_is_hung_up_on(studio: Studio) -> None:
    phone = await answered(studio)
    await phone.say("You have reached the mailbox of Sam. Please leave a message.")
    await phone.ended()
    row = await studio.closed(phone.room_name)

    assert (row.disposition, row.message_left) == ("voicemail", False)
    assert not speech_segments(phone.recording().heard)


UNANSWERED: list[tuple[Line, tuple[str, int | None]]] = [
    (Line(sip_status=486), ("busy", 486)),
    (Line(sip_status=603), ("declined", 603)),
    (Line(sip_status=404), ("bad_number", 404)),
    (Line(sip_status=480), ("unreachable", 480)),
    (Line(sip_status=503), ("failed", 503)),
    (Line(no_reply=True, no_reply_s=1.0), ("unreachable", None)),
    (Line(never_answers=True), ("no_answer", None)),
    (Line(cpu_exhausted=True), ("failed", None)),
]


async def test_a_call_that_is_not_answered_is_recorded_as_what_it_was(studio: Studio) -> None:
    rows = await asyncio.gather(*(outcome(studio, line) for line, _ in UNANSWERED))

    assert [(row.disposition, row.sip_status) for row in rows] == [due for _, due in UNANSWERED]
    assert not any(row.answered_at for row in rows)
    assert all([await room_is_gone(studio, row.room) for row in rows])


BAD_REQUESTS = {
    "call +15551230001": "metadata",
    '{"phone_number": "5551230001"}': "phone_number",
    '{"name": "Jo"}': "phone_number",
    '{"phone_number": "+15551230001", "colour": "red"}': "colour",
    '{"phone_number": "+15551230001", "trunk_id": "ST_gone"}': "trunk_id",
}


async def test_a_bad_request_is_not_dialled_and_says_why(studio: Studio) -> None:
    before = len(studio.network.calls)
    rooms = [await studio.network.dispatch(metadata) for metadata in BAD_REQUESTS]
    rows = await asyncio.gather(*(studio.closed(room) for room in rooms))

    assert {row.disposition for row in rows} == {"not_dialed"}
    for row, key in zip(rows, BAD_REQUESTS.values(), strict=True):
        assert key in row.reason
    assert len(studio.network.calls) == before


async def test_a_room_deleted_while_ringing_is_a_failure_of_the_system(studio: Studio) -> None:
    room, number = await dispatched(studio, Line(never_answers=True))
    await studio.network.dialled(number)
    async with studio.network.api() as livekit:
        await livekit.room.delete_room(api.DeleteRoomRequest(room=room))
    row = await studio.closed(room)

    assert (row.disposition, row.ended_by) == ("failed", "system")


@pytest.mark.race
async def test_a_callee_who_hangs_up_at_once_is_abandoned(studio: Studio) -> None:
    phone = await answered(studio)
    await phone.hang_up()
    row = await studio.closed(phone.room_name)

    assert (row.disposition, row.ended_by) == ("abandoned", "caller")


@pytest.mark.race
async def test_a_call_id_is_dialled_once(studio: Studio) -> None:
    number = new_number()
    studio.network.lines[number] = Line(sip_status=486)
    request = json.dumps({"phone_number": number, "call_id": f"once-{number}"})
    rooms = [await studio.network.dispatch(request), await studio.network.dispatch(request)]
    rows = [await studio.closed(room) for room in rooms]

    assert sorted(str(row.disposition) for row in rows) == ["busy", "not_dialed"]
    assert [p.number for p in studio.network.calls].count(number) == 1
