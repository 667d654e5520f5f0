"""A simulated phone rings, speaks, hears and ends as a phone behind the SIP bridge does."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from livekit import api

from simulator.bridge import Line
from simulator.ear import Ear
from simulator.handset import SAMPLE_RATE, LineQuality
from simulator.network import NotRouted, PhoneNetwork
from simulator.phone import CallOver, Phone
from simulator.recording import level_db, speech_segments
from simulator.speech import synthesize, telephone_line
from tests.phones import (
    MINE,
    NUMBER,
    ToneAgent,
    agent,
    livekit,
    network,
    request,
    tone,
    trunk,
    until,
)

__all__ = ["agent", "livekit", "network", "trunk"]  # fixtures


async def test_a_caller_rings_until_the_agents_track_is_heard(
    network: PhoneNetwork, agent: ToneAgent
) -> None:
    phone = await network.dial(from_=NUMBER, to=MINE, agent_name="", attributes={"sip.h.x-a": "1"})
    await agent.join(phone.room_name)
    attributes = agent.attributes()
    await asyncio.sleep(0.3)
    rang = phone.status == "ringing" and not phone.active.is_set()
    published = time.monotonic()
    await agent.publish()
    answered = await phone.became_active(3)
    await until(lambda: agent.statuses == ["active"])

    assert rang
    assert answered - published < 0.5
    assert attributes["sip.phoneNumber"] == NUMBER
    assert attributes["sip.trunkPhoneNumber"] == MINE
    assert attributes["sip.h.x-a"] == "1"
    assert {"sip.callID", "sip.callIDFull", "sip.callTag", "sip.ruleID", "sip.trunkID"} <= set(
        attributes
    )
    assert phone.identity == f"sip_{NUMBER}"
    assert phone.room_name.startswith(f"call_{NUMBER}_")


async def test_a_withheld_number_is_nowhere(network: PhoneNetwork, agent: ToneAgent) -> None:
    phone = await network.dial(from_=NUMBER, agent_name="", withheld=True)
    await agent.join(phone.room_name)
    (participant,) = agent.room.remote_participants.values()
    shown = [
        phone.room_name,
        participant.identity,
        participant.name,
        *participant.attributes.values(),
    ]

    assert not [text for text in shown if NUMBER in text]
    assert "sip.phoneNumber" not in participant.attributes


async def test_a_call_nobody_takes_is_given_up(network: PhoneNetwork) -> None:
    phone = await network.dial(agent_name="", ringing_timeout_s=0.5)

    assert await phone.ended(1) == "SIP 486"
    assert 0.4 < phone.times["gone"] - phone.times["joined"] < 0.8


async def test_saved_rules_route_the_call(
    network: PhoneNetwork, livekit: api.LiveKitAPI, agent: ToneAgent
) -> None:
    inbound = await livekit.sip.create_inbound_trunk(
        api.CreateSIPInboundTrunkRequest(
            trunk=api.SIPInboundTrunkInfo(numbers=[MINE], ringing_timeout=Duration(seconds=1))
        )
    )
    rule = api.SIPDispatchRuleInfo(
        trunk_ids=[inbound.sip_trunk_id],
        metadata="for the participant",
        attributes={"team": "support"},
        rule=api.SIPDispatchRule(
            dispatch_rule_individual=api.SIPDispatchRuleIndividual(room_prefix="desk")
        ),
    )
    await livekit.sip.create_dispatch_rule(api.CreateSIPDispatchRuleRequest(dispatch_rule=rule))
    phone = await network.dial(from_=NUMBER, to=MINE)
    await agent.join(phone.room_name)
    (participant,) = agent.room.remote_participants.values()
    with pytest.raises(NotRouted):
        await network.dial(to="+15550188888")

    assert phone.room_name.startswith(f"desk_{NUMBER}_")
    assert participant.metadata == "for the participant"
    assert participant.attributes["team"] == "support"
    assert participant.attributes["sip.trunkID"] == inbound.sip_trunk_id
    assert await phone.ended(2) == "SIP 486"


async def test_sound_and_keys_go_both_ways(network: PhoneNetwork, agent: ToneAgent) -> None:
    phone = await network.dial(agent_name="")
    await agent.join(phone.room_name)
    await agent.publish()
    await phone.became_active()
    await asyncio.sleep(0.3)

    played = time.monotonic()
    await agent.play(tone(0.6))
    start, end = await phone.agent_says(3, since=played, quiet_s=0.3)
    said = await phone.say(tone(0.5))
    returned = time.monotonic()
    await until(lambda: agent.loud and time.monotonic() - agent.loud[-1] > 0.2)
    await phone.press("12w#")
    await agent.room.local_participant.publish_dtmf(code=5, digit="5")

    assert 0 < start - played < 0.3
    assert abs(end - start - 0.6) < 0.06
    assert abs(said.end - said.start - 0.5) < 0.03
    assert abs(returned - said.end) < 0.1
    assert 0 <= agent.loud[0] - said.start < 0.2
    assert abs(agent.loud[-1] - agent.loud[0] - 0.5) < 0.1
    assert await phone.hears_keys(1) == "5"
    await until(lambda: agent.keys == ["1", "2", "#"])
    own, heard = speech_segments(phone.recording().own), speech_segments(phone.recording().heard)
    assert [round(s.duration_s, 1) for s in own] == [0.5]
    assert [round(s.duration_s, 1) for s in heard] == [0.6]


async def test_words_pass_the_line_both_ways(network: PhoneNetwork, agent: ToneAgent) -> None:
    network.line = telephone_line
    ear, words, reply = Ear(), "Where is my order?", "It left the warehouse, and arrives today."
    for voice, text in (("caller", words), ("agent", reply)):
        ear.learn(text, synthesize(text, voice=voice))
    phone = await network.dial(agent_name="")
    await agent.join(phone.room_name)
    await agent.publish()
    await phone.became_active()
    await asyncio.sleep(0.3)
    played = time.monotonic()
    await agent.play(synthesize(reply, voice="agent"))
    await phone.agent_says(5, since=played)
    said = await phone.say(words)
    recording = phone.recording()
    (heard,), (own,) = ear.transcribe(recording.heard), ear.transcribe(recording.own)

    assert (heard.text, own.text, said.text) == (reply, words, words)
    assert min(heard.cover, own.cover) > 0.9
    assert -26 < (level_db(recording.heard) or 0) < -16
    assert abs((said.end - said.start) - len(synthesize(words)) / SAMPLE_RATE) < 0.1


async def test_all_of_the_agents_tracks_are_heard_as_one(
    network: PhoneNetwork, agent: ToneAgent
) -> None:
    phone = await network.dial(agent_name="")
    await agent.join(phone.room_name)
    await agent.publish()
    await agent.publish()
    await phone.became_active()
    await asyncio.sleep(0.5)
    played = time.monotonic()
    await asyncio.gather(agent.play(tone(0.5, 600)), agent.play(tone(0.5, 1500), track=1))
    await phone.agent_says(3, since=played, quiet_s=0.3)
    heard = phone.recording().since(played).heard
    (segment,) = speech_segments(heard)
    spectrum = np.abs(np.fft.rfft(segment.of(heard).astype(float)))
    scale = len(segment.of(heard)) / SAMPLE_RATE
    peaks = {
        hz: spectrum[int((hz - 20) * scale) : int((hz + 20) * scale)].max() for hz in (600, 1500)
    }

    assert min(peaks.values()) > max(peaks.values()) / 2 > 10 * np.median(spectrum)


async def test_the_called_phone_hears_nothing_before_it_answers(
    network: PhoneNetwork, livekit: api.LiveKitAPI, agent: ToneAgent, trunk: str
) -> None:
    network.lines[NUMBER] = Line(rings_s=0.6)
    await agent.join("out")
    await agent.publish()
    dialing = asyncio.create_task(livekit.sip.create_sip_participant(request(trunk)))
    phone = await network.dialled(NUMBER)
    await agent.play(tone(2.0))
    await dialing
    heard = await phone.agent_speaks(3)

    assert heard >= phone.times["active"]


async def test_two_phones_in_a_room_hear_each_other(
    network: PhoneNetwork, livekit: api.LiveKitAPI, trunk: str
) -> None:
    caller = await network.dial(agent_name="", room="both")
    network.lines[NUMBER] = Line(rings_s=0.05)
    await livekit.sip.create_sip_participant(request(trunk, room_name="both"))
    person = network.calls[1]
    await caller.became_active()
    await asyncio.sleep(0.4)
    begun = time.monotonic()
    await person.say(tone(0.3))
    await caller.agent_speaks(2, since=begun)
    await caller.say(tone(0.3))
    await person.agent_speaks(2, since=begun)
    await caller.hang_up()

    assert not await person.gone_within(0.5)


async def test_the_end_of_the_call_reaches_the_phone_and_what_it_waits_for(
    network: PhoneNetwork, livekit: api.LiveKitAPI
) -> None:
    phone = await network.dial(agent_name="")
    waiting = asyncio.create_task(phone.agent_speaks(20))
    speaking = asyncio.create_task(phone.say(tone(5)))
    await asyncio.sleep(0.2)
    deleted = time.monotonic()
    await livekit.room.delete_room(api.DeleteRoomRequest(room=phone.room_name))

    for task in (waiting, speaking):
        with pytest.raises(CallOver, match="ROOM_DELETED"):
            await task
    assert phone.times["gone"] - deleted < 0.3
    with pytest.raises(CallOver):
        await phone.say(tone(0.1))


async def test_a_dispatch_makes_its_room(network: PhoneNetwork, livekit: api.LiveKitAPI) -> None:
    room = await network.dispatch('{"phone_number": "+15550200001"}')
    dispatches = await livekit.agent_dispatch.list_dispatch(room)

    assert [(d.agent_name, d.metadata) for d in dispatches if d.agent_name] == [
        ("customer-support", '{"phone_number": "+15550200001"}')
    ]


async def test_a_bad_line_loses_sound(network: PhoneNetwork) -> None:
    lossy = await network.dial(agent_name="", quality=LineQuality(loss=0.3, jitter_ms=15))
    said = await lossy.say(tone(1.0))
    own = lossy.recording().own
    exact = tone(1.0)
    sent = own[round((said.start - lossy.started) * SAMPLE_RATE) :][: len(exact)]

    assert 0.1 < np.mean(np.abs(sent.astype(int) - exact) > 500) < 0.6


async def test_a_script_that_fails_is_not_silent(trunk: str, network: PhoneNetwork) -> None:
    async def on_answer(phone: Phone) -> None:
        raise ValueError("the person is confused")

    network.lines[NUMBER] = Line(rings_s=0.05, on_answer=on_answer)
    async with network.api() as livekit:
        await livekit.sip.create_sip_participant(request(trunk))
    await until(lambda: network.script_errors)

    assert [str(error) for error in network.script_errors] == ["the person is confused"]
    network.script_errors.clear()
