"""What the SIP bridge does with a dialled number and with a transfer, as measured on the real one.

The figures are those of livekit-sip (August 2026) before livekit-server 1.13.5.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from livekit import rtc
from livekit.protocol import sip

from simulator.handset import LineQuality
from simulator.phone import CallOver, Phone
from simulator.trunks import NO_TRUNK, Trunks
from simulator.twirp import TwirpError, sip_error

logger = logging.getLogger(__name__)

DEFAULT_RINGING_S = 180.0
DEFAULT_TRANSFER_S = 30.0
CANCEL_S = 0.4  # from the ringing timeout to the error: CANCEL and its answer
BYE_AFTER_REFER_S = 1.0
_NEVER_RING = (400, 404, 410, 484, 488, 500, 502, 503, 604)
_REJECTED = (401, 403, 407, 486, 600, 603, 607, 608)
_UNAVAILABLE = (404, 408, 410, 480, 604)
_TRANSFER = re.compile(r"accept|no_notify|rejected_\d{3}")

Reason = rtc.DisconnectReason


@dataclass(frozen=True)
class Line:
    """What a number does when it is dialled; by default it rings 0.3 s and answers.

    `transfer` is what the phone makes of a REFER: "accept", a SIP status it reports after accepting
    it (486), "rejected_603" (the REFER itself is refused), or "no_notify" (nothing more is heard).
    `on_answer` is what the person does then, as a coroutine function of the phone.
    """

    rings_s: float = 0.3
    sip_status: int | None = None
    never_answers: bool = False
    no_reply: bool = False
    no_reply_s: float = 8.5
    cpu_exhausted: bool = False
    on_answer: Callable[[Phone], Awaitable[None]] | None = None
    transfer: str | int = "accept"
    transfer_s: float = 0.3
    quality: LineQuality = field(default_factory=LineQuality)
    voice: str = "caller"

    def __post_init__(self) -> None:
        check_transfer(self.transfer)


def check_transfer(answer: str | int) -> None:
    """ValueError unless it is something a phone can answer to a REFER."""
    if not isinstance(answer, int) and not _TRANSFER.fullmatch(answer):
        raise ValueError(f"transfer: {answer!r} is none of accept, 486, rejected_603, no_notify")


UNKNOWN_NUMBER = Line(sip_status=404, rings_s=0.05)

NewPhone = Callable[[sip.CreateSIPParticipantRequest, Line, str, str], Awaitable[Phone]]
"""(request, line, trunk id, caller id) -> the phone, joined and dialing."""


class Bridge:
    """Places calls to `lines` and transfers phones; refusals are TwirpErrors."""

    def __init__(self, trunks: Trunks, lines: dict[str, Line], new_phone: NewPhone) -> None:
        self._trunks = trunks
        self._lines = lines
        self._new_phone = new_phone
        self._phones: dict[tuple[str, str], Phone] = {}
        self._tasks: set[asyncio.Task] = set()
        self.script_errors: list[BaseException] = []

    def ring_in(self, phone: Phone, ringing_s: float, max_call_s: float) -> None:
        """A caller whose phone has begun to ring."""
        self._phones[phone.room_name, phone.identity] = phone
        self._keep(self._give_up(phone, ringing_s))
        if max_call_s:
            self._keep(self._hang_up_after(phone, max_call_s, "max call duration"))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ dialling

    async def dial(self, request: sip.CreateSIPParticipantRequest) -> Message:
        """CreateSIPParticipant."""
        trunk_id, caller_id = self._way_out(request)
        if not request.sip_call_to:
            raise TwirpError("invalid_argument", "missing sip callee number")
        if not request.room_name:
            raise TwirpError("invalid_argument", "missing room name")
        line = self._lines.get(request.sip_call_to, UNKNOWN_NUMBER)
        if line.cpu_exhausted:
            await asyncio.sleep(0.06)
            raise TwirpError("unavailable", "cpu exhausted")
        phone = await self._new_phone(request, line, trunk_id, caller_id)
        self._phones[phone.room_name, phone.identity] = phone
        placing = self._keep(self._place(phone, line, request))
        if request.wait_until_answered:
            # The request may be given up; the phone rings on.
            await asyncio.shield(placing)
        else:
            placing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return sip.SIPParticipantInfo(
            participant_id=phone.room.local_participant.sid,
            participant_identity=phone.identity,
            room_name=phone.room_name,
            sip_call_id=phone.call_id,
        )

    def _way_out(self, request: sip.CreateSIPParticipantRequest) -> tuple[str, str]:
        """(trunk id, caller id)."""
        if request.sip_trunk_id:
            trunk = self._trunks.outbound.get(request.sip_trunk_id)
            if trunk is None:
                raise TwirpError("not_found", NO_TRUNK)
            return request.sip_trunk_id, request.sip_number or trunk.numbers[0]
        if request.HasField("trunk"):
            if not request.sip_number:
                raise TwirpError("invalid_argument", "sip_number must be set with an inline trunk")
            return "", request.sip_number
        raise TwirpError("invalid_argument", "missing sip trunk id")

    async def _place(
        self, phone: Phone, line: Line, request: sip.CreateSIPParticipantRequest
    ) -> None:
        limit = _seconds(request, "ringing_timeout") or DEFAULT_RINGING_S
        if line.no_reply:
            await self._no_answer(phone, min(line.no_reply_s, limit + CANCEL_S))
        if line.sip_status not in _NEVER_RING:
            await phone.set_status("ringing")
        if line.never_answers or line.rings_s > limit:
            await self._no_answer(phone, limit + CANCEL_S)
        await self._ringing(phone, line.rings_s)
        if line.sip_status:
            await phone.leave(f"SIP {line.sip_status}", _reason(line.sip_status))
            raise sip_error(line.sip_status)
        await self._answer(phone, line, request)

    async def _answer(
        self, phone: Phone, line: Line, request: sip.CreateSIPParticipantRequest
    ) -> None:
        if request.dtmf:
            await phone.set_status("automation")
            for key in request.dtmf:
                await asyncio.sleep(0.5 if key == "w" else 0.52)
                if key != "w":
                    phone.keys_heard.append(key)
        await phone.set_status(
            "active", callIDFull=secrets.token_hex(16), callTag=secrets.token_hex(4)
        )
        if limit := _seconds(request, "max_call_duration"):
            self._keep(self._hang_up_after(phone, limit, "max call duration"))
        if line.on_answer:
            phone.script = self._keep(self._run(phone, line.on_answer))

    async def _run(self, phone: Phone, script: Callable[[Phone], Awaitable[None]]) -> None:
        try:
            await script(phone)
        except CallOver:
            pass  # the agent hung up on them: the test looks at the call, not at the script
        except Exception as error:
            logger.exception("the script of a phone failed")
            self.script_errors.append(error)

    async def _ringing(self, phone: Phone, seconds: float) -> None:
        if await phone.gone_within(seconds):
            await asyncio.sleep(0.1)
            raise TwirpError("canceled", "sip request timed out")

    async def _no_answer(self, phone: Phone, after: float) -> None:
        await self._ringing(phone, after)
        await phone.leave("not answered", Reason.USER_UNAVAILABLE)
        raise TwirpError("canceled", "sip request timed out")

    async def _give_up(self, phone: Phone, after: float) -> None:
        """Nobody answers: the bridge sends 486 when the trunk's ringing timeout is over."""
        if not await phone.gone_within(after) and not phone.active.is_set():
            await phone.leave("SIP 486", Reason.USER_UNAVAILABLE)

    async def _hang_up_after(self, phone: Phone, seconds: float, reason: str) -> None:
        if not await phone.gone_within(seconds):
            await phone.hang_up(reason)

    # ------------------------------------------------------------------ transferring

    async def transfer(self, request: sip.TransferSIPParticipantRequest) -> Message:
        """TransferSIPParticipant; livekit-server 1.13.5 answers a success with nothing in it."""
        if not request.transfer_to.startswith(("tel:", "sip:", "sips:")):
            uri = "transfer_to must be a valid SIP(s) or TEL URI (sip:, sips: or tel:)"
            raise TwirpError("invalid_argument", uri)
        phone = self._phones.get((request.room_name, request.participant_identity))
        if phone is None or phone.gone.is_set():
            raise TwirpError("not_found", "participant does not exist")
        phone.transfers.append(request.transfer_to)
        limit = _seconds(request, "ringing_timeout") or DEFAULT_TRANSFER_S
        if request.play_dialtone:
            async with phone.hearing_ringback():
                await self._refer(phone, limit)
        else:
            await self._refer(phone, limit)
        self._keep(self._hang_up_after(phone, BYE_AFTER_REFER_S, "transferred"))
        return Empty()

    async def _refer(self, phone: Phone, limit: float) -> None:
        """Returns when the other side took the call over, or when the caller hung up: the bridge
        can't tell those two apart."""
        answer = phone.transfer
        if isinstance(answer, str) and answer.startswith("rejected_"):
            raise sip_error(int(answer.removeprefix("rejected_")), "call transfer failed")
        if answer == "no_notify" or phone.transfer_s > limit:
            if await phone.gone_within(limit):
                return
            raise TwirpError("deadline_exceeded", "refer timed out")
        if await phone.gone_within(phone.transfer_s):
            return
        if isinstance(answer, int) and answer != 200:
            raise sip_error(answer, "call transfer failed")

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _seconds(request: Message, name: str) -> float:
    if not request.HasField(name):
        return 0.0
    duration = getattr(request, name)
    return float(duration.seconds + duration.nanos / 1e9)


def _reason(status: int) -> rtc.DisconnectReason.ValueType:
    if status in _REJECTED:
        return Reason.USER_REJECTED
    return Reason.USER_UNAVAILABLE if status in _UNAVAILABLE else Reason.CLIENT_INITIATED
