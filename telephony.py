"""The telephone line of a call: dial, who answered, transfer, hang up; SIP outcomes as endings.

A bridge that was told to dial dials on even if we stop waiting: only deleting the room stops it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from datetime import datetime, timezone
from typing import Protocol

import aiohttp
import numpy as np
from google.protobuf.duration_pb2 import Duration
from livekit import api, rtc
from livekit.agents import JobContext

from call import Call, DialRequest, Disposition, EndedBy, Ending
from config import Settings

logger = logging.getLogger("telephony")

PHONE_KINDS = (
    rtc.ParticipantKind.PARTICIPANT_KIND_SIP,
    rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD,
)

_DISPOSITION_OF_STATUS = {
    **dict.fromkeys((486, 600), Disposition.BUSY),
    **dict.fromkeys((603, 607, 608, 403), Disposition.DECLINED),
    **dict.fromkeys((404, 410, 604, 484), Disposition.BAD_NUMBER),
    480: Disposition.UNREACHABLE,
    **dict.fromkeys((408, 487), Disposition.NO_ANSWER),
}


_ENDED_BY_SERVER = (
    rtc.DisconnectReason.ROOM_DELETED,
    rtc.DisconnectReason.PARTICIPANT_REMOVED,
)

CALLER_LEFT_S = 0.3
"""A caller gone so soon after a transfer hung up: the bridge ends a transferred leg after 1.0 s."""


class DialFailed(Exception):
    """Nobody was reached; `ending` says how."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


class TransferFailed(Exception):
    """The caller was not put through and is still on the line; the message says why."""


class CallerLeft(Exception):
    """The caller hung up while being transferred: whether they were put through is unknown."""


def dial_ending(error: Exception, last_status: str, room_is_gone: bool) -> Ending:
    """How a failed dial ended.

    `last_status` is the participant's last `sip.callStatus`: without a SIP code it alone tells
    ringing out from no reply.
    """
    failed, system = Disposition.FAILED, EndedBy.SYSTEM
    if room_is_gone:
        return Ending(failed, system, "room deleted while ringing")
    if isinstance(error, api.SipCallError) and (code := error.sip_status_code):
        disposition = _DISPOSITION_OF_STATUS.get(code, failed)
        ended_by = EndedBy.CALLER if disposition is Disposition.DECLINED else system
        return Ending(disposition, ended_by, f"SIP {code}", sip_status=code)
    if not isinstance(error, api.ServerError):
        return Ending(failed, system, f"no answer from LiveKit: {type(error).__name__}")
    if error.code in ("canceled", "deadline_exceeded"):
        if last_status == "ringing":
            return Ending(Disposition.NO_ANSWER, system, "rang out")
        return Ending(Disposition.UNREACHABLE, system, "no SIP reply")
    if error.code == "not_found":
        return Ending(Disposition.NOT_DIALED, system, "trunk_id: no such trunk in this project")
    if error.code in ("invalid_argument", "permission_denied", "unauthenticated"):
        return Ending(Disposition.NOT_DIALED, system, f"LiveKit refused the dial: {error.code}")
    return Ending(failed, system, f"LiveKit: {error.code}")


class Line(Protocol):
    """Who a call is held with, as far as tools and behaviours need it."""

    left: asyncio.Event
    """Set when the phone, or the room, is gone."""
    ended_by_server: bool
    """Whether the room was deleted, or the phone removed from it."""
    is_lost: bool
    """Whether it was our own connection that ended."""

    async def transfer(self, uri: str) -> None:
        """Hand the caller over; returns once the other side has taken them.

        Raises TransferFailed if they are still with us, CallerLeft if they hung up meanwhile.
        """


class PhoneLine:
    """The phone at the other end of one call's room."""

    def __init__(self, ctx: JobContext, settings: Settings) -> None:
        self._ctx = ctx
        self._settings = settings
        self.identity = ""
        self.status = ""
        """The phone's last `sip.callStatus`."""
        self.answered = asyncio.Event()
        self.answered_at: datetime | None = None
        self.left = asyncio.Event()
        self.ended_by_server = self.is_lost = False
        room = ctx.room
        room.on("participant_connected", self._on_seen)
        room.on("participant_attributes_changed", lambda _, phone: self._on_seen(phone))
        room.on("participant_disconnected", self._on_left)
        room.on("disconnected", self._on_disconnected)

    def _on_seen(self, phone: rtc.Participant) -> None:
        if self.identity and phone.identity != self.identity:
            return
        self.status = phone.attributes.get("sip.callStatus", self.status)
        if self.status == "active" and not self.answered.is_set():
            self.answered_at = datetime.now(timezone.utc)
            self.answered.set()

    def _on_left(self, phone: rtc.RemoteParticipant) -> None:
        if phone.identity == self.identity:
            self.ended_by_server = phone.disconnect_reason in _ENDED_BY_SERVER
            self.left.set()

    def _on_disconnected(self, reason: object) -> None:
        if not self.left.is_set():
            self.ended_by_server = reason in _ENDED_BY_SERVER
            self.is_lost = not self.ended_by_server
        self.left.set()

    async def wait_for_caller(self, timeout: float) -> rtc.RemoteParticipant | None:
        """The caller of an inbound call, or None if nobody comes within `timeout` seconds."""
        try:
            phone = await asyncio.wait_for(
                self._ctx.wait_for_participant(kind=list(PHONE_KINDS)), timeout
            )
        except (asyncio.TimeoutError, RuntimeError):  # RuntimeError: the room is gone
            return None
        self.identity = phone.identity
        self._on_seen(phone)
        if phone.identity not in self._ctx.room.remote_participants:
            self.left.set()
        return phone

    async def dial(self, call: Call, request: DialRequest) -> None:
        """Dial and return once the callee has answered; DialFailed otherwise."""
        trunk = request.trunk_id or self._settings.sip_outbound_trunk_id
        if not trunk:
            reason = "trunk_id: none given and SIP_OUTBOUND_TRUNK_ID is not set"
            raise DialFailed(Ending(Disposition.NOT_DIALED, EndedBy.SYSTEM, reason))
        self.identity = f"callee-{uuid.uuid4().hex[:12]}"
        ring_s = self._settings.ring_timeout_s
        dial = api.CreateSIPParticipantRequest(
            sip_trunk_id=trunk,
            sip_call_to=request.phone_number,
            sip_number=request.caller_id,
            room_name=call.room,
            participant_identity=self.identity,
            participant_name="callee",
            wait_until_answered=True,
            ringing_timeout=Duration(seconds=math.ceil(ring_s)),
        )
        call.ringing_at = datetime.now(timezone.utc)
        try:
            await self._ctx.api.sip.create_sip_participant(dial, timeout=ring_s + 15)
        except (api.ServerError, aiohttp.ClientError, asyncio.TimeoutError) as error:
            await asyncio.sleep(0)  # lets a room event that came with the error be seen
            raise DialFailed(dial_ending(error, self.status, self.ended_by_server)) from error
        call.answered_at = self.answered_at or datetime.now(timezone.utc)
        phone = self._ctx.room.remote_participants.get(self.identity)
        call.dialed_number = phone.attributes.get("sip.trunkPhoneNumber") if phone else None

    async def transfer(self, uri: str) -> None:
        """Hand the caller over by SIP REFER, see `Line.transfer`."""
        seconds = self._settings.transfer_timeout_s
        request = api.TransferSIPParticipantRequest(
            room_name=self._ctx.room.name,
            participant_identity=self.identity,
            transfer_to=uri,
            play_dialtone=True,
            ringing_timeout=Duration(seconds=math.ceil(seconds)),
        )
        try:
            response = await self._ctx.api.sip.transfer_sip_participant(
                request, timeout=seconds + 5
            )
        except (api.ServerError, aiohttp.ClientError, asyncio.TimeoutError) as error:
            if self.left.is_set():
                raise CallerLeft from error
            raise TransferFailed(_transfer_problem(error)) from error
        if response.status == api.SIPTransferStatus.STS_TRANSFER_FAILED:
            raise TransferFailed("refused")
        if await self._leaves_within(CALLER_LEFT_S):
            raise CallerLeft

    async def _leaves_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.left.wait(), seconds)
        except asyncio.TimeoutError:
            return self.status == "hangup"
        return True

    async def hang_up(self) -> None:
        """Delete the room: whoever is on the line, or still being dialled, is hung up."""
        room = api.DeleteRoomRequest(room=self._ctx.job.room.name)
        for pause_s in (0.0, 1.0, 5.0):
            await asyncio.sleep(pause_s)
            try:
                await asyncio.wait_for(self._ctx.api.room.delete_room(room), 5)
                return
            except api.ServerError as error:
                if error.code == "not_found":
                    return
                problem = error.code
            except (aiohttp.ClientError, asyncio.TimeoutError):
                problem = "LiveKit does not answer"
            logger.warning("could not delete the room", extra={"code": problem})


def _transfer_problem(error: Exception) -> str:
    code = error.sip_status_code if isinstance(error, api.SipCallError) else None
    if code in (486, 600):
        return "busy"
    if code:
        return "refused"
    if isinstance(error, api.ServerError) and error.code == "deadline_exceeded":
        return "unanswered"
    return "unanswered" if isinstance(error, asyncio.TimeoutError) else "refused"


class BeepListener:
    """Hears the tone after which an answering machine records.

    A beep is at least 120 ms in which one frequency between 400 and 2,200 Hz carries nearly all
    the energy: speech never does for that long. Lost packets may make a hole in it.
    """

    WINDOW_MS = 20
    LEAST_MS = 120
    LONGEST_HOLE_MS = 80

    def __init__(self) -> None:
        self.heard = asyncio.Event()
        """Set once a beep has ended."""
        self._rest = np.zeros(0, np.int16)
        self._run_ms = 0
        self._hole_ms = 0
        self._pitch = 0.0

    def push(self, frame: rtc.AudioFrame) -> None:
        """Listen to 16-bit mono audio at any sample rate."""
        self._rest = np.concatenate([self._rest, np.frombuffer(frame.data, np.int16)])
        size = frame.sample_rate * self.WINDOW_MS // 1000
        while len(self._rest) >= size:
            window, self._rest = self._rest[:size], self._rest[size:]
            self._hear(_pure_tone(window, frame.sample_rate))

    def _hear(self, pitch: float | None) -> None:
        if pitch and (not self._run_ms or abs(pitch - self._pitch) <= 50):
            self._pitch = pitch
            self._run_ms += self.WINDOW_MS
            self._hole_ms = 0
            return
        self._hole_ms += self.WINDOW_MS
        is_beep = self._run_ms >= self.LEAST_MS
        if is_beep and self._hole_ms <= self.LONGEST_HOLE_MS:
            return
        if is_beep:
            self.heard.set()
        self._run_ms = 0


def _pure_tone(window: np.ndarray, rate: int) -> float | None:
    """The frequency (Hz) of `window` if it is a single loud tone."""
    samples = window.astype(np.float64)
    if np.sqrt(np.mean(samples**2)) < 300:
        return None
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    peak = int(np.argmax(power))
    share = power[max(0, peak - 2) : peak + 3].sum() / power.sum()
    pitch = peak * rate / len(samples)
    return pitch if share > 0.95 and 400 <= pitch <= 2200 else None
