"""The simulated phone network answers as the real SIP bridge did."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from livekit import api, rtc

from simulator.bridge import Line
from simulator.handset import SAMPLE_RATE
from simulator.network import PhoneNetwork
from simulator.phone import Phone
from tests.phones import MINE, NUMBER, ToneAgent, agent, livekit, network, request, trunk, until

__all__ = ["agent", "livekit", "network", "trunk"]  # fixtures


# ------------------------------------------------------------------ outbound: the SIP table


@pytest.mark.parametrize(
    "row",
    [
        (486, "resource_exhausted", 429, "Busy Here", "ringing", "USER_REJECTED"),
        (603, "permission_denied", 403, "Decline", "ringing", "USER_REJECTED"),
        (404, "not_found", 404, "Not Found", "dialing", "USER_UNAVAILABLE"),
        (480, "resource_exhausted", 429, "Temporarily Unavailable", "ringing", "USER_UNAVAILABLE"),
        (500, "failed_precondition", 412, "Internal Server Error", "dialing", "CLIENT_INITIATED"),
        (503, "failed_precondition", 412, "Service Unavailable", "dialing", "CLIENT_INITIATED"),
        (600, "resource_exhausted", 429, "Busy Everywhere", "ringing", "USER_REJECTED"),
        (608, "permission_denied", 403, "Rejected", "ringing", "USER_REJECTED"),
        (604, "not_found", 404, "Does Not Exist Anywhere", "dialing", "USER_UNAVAILABLE"),
        (408, "deadline_exceeded", 408, "Request Timeout", "ringing", "USER_UNAVAILABLE"),
        (487, "aborted", 409, "Request Terminated", "ringing", "CLIENT_INITIATED"),
        (488, "invalid_argument", 400, "Not Acceptable Here", "dialing", "CLIENT_INITIATED"),
    ],
)
async def test_a_refused_call_tells_the_sip_status(
    network: PhoneNetwork,
    livekit: api.LiveKitAPI,
    agent: ToneAgent,
    trunk: str,
    row: tuple[int, str, int, str, str, str],
) -> None:
    status, code, http, phrase, last_status, reason = row
    network.lines[NUMBER] = Line(sip_status=status, rings_s=0.1)
    await agent.join("out")

    with pytest.raises(api.SipCallError) as raised:
        await livekit.sip.create_sip_participant(request(trunk))

    error = raised.value
    assert (error.sip_status_code, error.sip_status) == (status, phrase)
    assert (error.code, error.status) == (code, http)
    assert network.calls[0].status == last_status
    await until(lambda: agent.left)
    assert agent.left == [rtc.DisconnectReason.Value(reason)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (Line(never_answers=True), ("canceled", 408, "ringing", 1.0, 1.7)),
        (Line(rings_s=5), ("canceled", 408, "ringing", 1.0, 1.7)),
        (Line(no_reply=True, no_reply_s=0.5), ("canceled", 408, "dialing", 0.5, 1.0)),
        (Line(cpu_exhausted=True), ("unavailable", 503, None, 0.04, 0.3)),
    ],
    ids=["never answers", "rings too long", "no SIP reply", "bridge out of CPU"],
)
async def test_a_call_without_a_sip_answer_is_a_plain_error(
    network: PhoneNetwork,
    trunk: str,
    line: Line,
    expected: tuple[str, int, str | None, float, float],
) -> None:
    code, http, last_status, least_s, most_s = expected
    network.lines[NUMBER] = line
    begun = time.monotonic()

    async with network.api() as livekit:
        with pytest.raises(api.ServerError) as raised:
            await livekit.sip.create_sip_participant(request(trunk, ring=1))

    assert least_s <= time.monotonic() - begun <= most_s
    assert not isinstance(raised.value, api.SipCallError)
    assert (raised.value.code, raised.value.status) == (code, http)
    assert [phone.status for phone in network.calls] == ([last_status] if last_status else [])


async def test_deleting_the_room_stops_the_ringing(
    network: PhoneNetwork, livekit: api.LiveKitAPI, trunk: str
) -> None:
    network.lines[NUMBER] = Line(never_answers=True)
    dialing = asyncio.create_task(livekit.sip.create_sip_participant(request(trunk, ring=20)))
    phone = await network.dialled(NUMBER)
    await until(lambda: phone.status == "ringing")
    deleted = time.monotonic()
    await livekit.room.delete_room(api.DeleteRoomRequest(room="out"))

    with pytest.raises(api.ServerError) as raised:
        await dialing

    assert time.monotonic() - deleted < 0.5
    assert not isinstance(raised.value, api.SipCallError)
    assert raised.value.code == "canceled"
    assert phone.gone_reason == "ROOM_DELETED"


async def test_giving_up_the_request_does_not_stop_the_dial(
    network: PhoneNetwork, livekit: api.LiveKitAPI, trunk: str
) -> None:
    network.lines[NUMBER] = Line(rings_s=0.5)
    dialing = asyncio.create_task(livekit.sip.create_sip_participant(request(trunk)))
    phone = await network.dialled(NUMBER)
    dialing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await dialing

    assert await phone.became_active(2)


async def test_unknown_numbers_and_trunks_are_told_apart(
    network: PhoneNetwork, livekit: api.LiveKitAPI, trunk: str
) -> None:
    with pytest.raises(api.SipCallError) as number:
        await livekit.sip.create_sip_participant(request(trunk, sip_call_to="+15550299999"))
    with pytest.raises(api.ServerError) as no_trunk:
        await livekit.sip.create_sip_participant(request("ST_unknown"))

    assert number.value.sip_status_code == 404
    assert not isinstance(no_trunk.value, api.SipCallError)
    assert (no_trunk.value.code, no_trunk.value.metadata) == ("not_found", {})
    assert "trunk" in no_trunk.value.message


async def test_an_answered_call_shows_the_bridges_attributes_and_runs_its_script(
    network: PhoneNetwork, livekit: api.LiveKitAPI, agent: ToneAgent, trunk: str
) -> None:
    answered: list[Phone] = []

    async def on_answer(phone: Phone) -> None:
        answered.append(phone)

    network.lines[NUMBER] = Line(rings_s=0.2, on_answer=on_answer)
    await agent.join("out")
    info = await livekit.sip.create_sip_participant(
        request(trunk, participant_attributes={"callId": "7"}, participant_name="Ada")
    )
    await until(lambda: answered and agent.statuses[-1:] == ["active"])
    phone = network.calls[0]
    attributes = agent.attributes()

    assert agent.statuses[-2:] == ["ringing", "active"]
    assert (info.participant_identity, info.room_name) == ("callee", "out")
    assert info.sip_call_id == attributes["sip.callID"] == phone.call_id
    assert attributes["sip.phoneNumber"] == NUMBER
    assert attributes["sip.trunkPhoneNumber"] == MINE
    assert attributes["sip.trunkID"] == trunk
    assert attributes["callId"] == "7"
    assert "sip.callTag" in attributes and "sip.ruleID" not in attributes
    assert answered == [phone]

    await phone.hang_up()
    await until(lambda: agent.left)

    assert agent.statuses[-1] == "hangup"
    assert agent.left == [rtc.DisconnectReason.CLIENT_INITIATED]


async def test_an_inline_trunk_hidden_numbers_dialled_keys_and_no_waiting(
    network: PhoneNetwork, livekit: api.LiveKitAPI, agent: ToneAgent
) -> None:
    network.lines[NUMBER] = Line(rings_s=0.1)
    await agent.join("out")
    begun = time.monotonic()
    await livekit.sip.create_sip_participant(
        request(
            "",
            trunk=api.SIPOutboundConfig(hostname="carrier.test"),
            sip_number=MINE,
            hide_phone_number=True,
            wait_until_answered=False,
            dtmf="1w2#",
        )
    )
    waited = time.monotonic() - begun
    await until(lambda: agent.statuses[-1:] == ["active"], 5)

    assert waited < 1.0
    assert agent.statuses[-3:] == ["ringing", "automation", "active"]
    assert network.calls[0].keys_heard == ["1", "2", "#"]
    assert not {"sip.phoneNumber", "sip.trunkID", "sip.hostname"} & set(agent.attributes())


async def test_the_same_identity_again_hangs_up_the_first_call(
    network: PhoneNetwork, livekit: api.LiveKitAPI, trunk: str
) -> None:
    network.lines[NUMBER] = Line(rings_s=0.05)
    await livekit.sip.create_sip_participant(request(trunk))
    await livekit.sip.create_sip_participant(request(trunk))
    first, second = network.calls

    assert await first.ended(1) == "DUPLICATE_IDENTITY"
    assert not second.gone.is_set()


async def test_max_call_duration_ends_the_call(
    network: PhoneNetwork, livekit: api.LiveKitAPI, trunk: str
) -> None:
    network.lines[NUMBER] = Line(rings_s=0.05)
    await livekit.sip.create_sip_participant(request(trunk, max_call_duration=Duration(seconds=1)))

    assert await network.calls[0].ended(1.5) == "max call duration"


# ------------------------------------------------------------------ transfers


async def transfer(
    livekit: api.LiveKitAPI, phone: Phone, to: str = "tel:+15550149999", ring: int = 1, **more: Any
) -> api.TransferSIPParticipantResponse:
    return await livekit.sip.transfer_sip_participant(
        api.TransferSIPParticipantRequest(
            room_name=phone.room_name,
            participant_identity=phone.identity,
            transfer_to=to,
            ringing_timeout=Duration(seconds=ring),
            **more,
        )
    )


async def test_a_transfer_succeeds_with_an_empty_answer_and_the_leg_ends_a_second_later(
    network: PhoneNetwork, livekit: api.LiveKitAPI
) -> None:
    phone = await network.dial(agent_name="")
    answer = await transfer(livekit, phone)
    returned = time.monotonic()
    still_there = not phone.gone.is_set()
    reason = await phone.ended(2)

    assert answer == api.TransferSIPParticipantResponse()
    assert still_there
    assert 0.9 <= phone.times["gone"] - returned <= 1.3
    assert (reason, phone.transfers) == ("transferred", ["tel:+15550149999"])


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (486, 486, "resource_exhausted"),
        (603, 603, "permission_denied"),
        (500, 500, "failed_precondition"),
        ("rejected_603", 603, "permission_denied"),
        ("rejected_405", 405, "invalid_argument"),
    ],
)
async def test_a_failed_transfer_tells_the_sip_status_and_keeps_the_call(
    network: PhoneNetwork, livekit: api.LiveKitAPI, answer: str | int, status: int, code: str
) -> None:
    phone = await network.dial(agent_name="", transfer=answer, transfer_s=0.1)

    with pytest.raises(api.SipCallError) as raised:
        await transfer(livekit, phone)

    assert (raised.value.sip_status_code, raised.value.code) == (status, code)
    assert not await phone.gone_within(1.2)


async def test_a_transfer_nobody_reports_on_times_out(
    network: PhoneNetwork, livekit: api.LiveKitAPI
) -> None:
    phone = await network.dial(agent_name="", transfer="no_notify")

    with pytest.raises(api.ServerError) as raised:
        await transfer(livekit, phone)

    assert not isinstance(raised.value, api.SipCallError)
    assert raised.value.code == "deadline_exceeded"
    assert not phone.gone.is_set()


async def test_hanging_up_during_a_transfer_looks_like_success(
    network: PhoneNetwork, livekit: api.LiveKitAPI
) -> None:
    phone = await network.dial(agent_name="", transfer="no_notify")
    transferring = asyncio.create_task(transfer(livekit, phone, ring=10))
    await until(lambda: phone.transfers)
    await phone.hang_up()

    assert await transferring == api.TransferSIPParticipantResponse()


async def test_a_transfer_needs_a_uri_and_a_phone(
    network: PhoneNetwork, livekit: api.LiveKitAPI
) -> None:
    phone = await network.dial(agent_name="")
    with pytest.raises(api.ServerError) as no_uri:
        await transfer(livekit, phone, to="+15550149999")
    phone.identity = "somebody"
    with pytest.raises(api.ServerError) as nobody:
        await transfer(livekit, phone)

    assert no_uri.value.code == "invalid_argument"
    assert nobody.value.code == "not_found"


async def test_the_caller_hears_ringing_during_a_transfer_with_dialtone(
    network: PhoneNetwork, livekit: api.LiveKitAPI
) -> None:
    phone = await network.dial(agent_name="", transfer=486, transfer_s=0.6)
    begun = time.monotonic()
    with pytest.raises(api.SipCallError):
        await transfer(livekit, phone, play_dialtone=True)
    phone.ear.flush()
    heard = phone.recording().since(begun).heard
    spectrum = np.abs(np.fft.rfft(heard.astype(float)))

    assert abs(int(np.argmax(spectrum)) * SAMPLE_RATE / len(heard) - 425) < 10
