"""One phone in a call: it always sends, hears all tracks as one, and does what its owner says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from livekit import rtc

from simulator.handset import (
    FRAME,
    FRAME_S,
    LOUD,
    SAMPLE_RATE,
    Earpiece,
    LineQuality,
    Mouth,
    TelephoneLine,
    levels,
    ringback,
)
from simulator.recording import Recording

LEAD_S = 0.06  # how far ahead sound is handed over, so that a busy moment makes no gap
PACKETS = 2  # handed over at once, and taken at once: each hand-over costs as much as its sound
ACK_S = 0.2
KEYS = "0123456789*#ABCD"
T = TypeVar("T")
AGENT = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT

Announce = Callable[[str, str], np.ndarray]
"""(text, voice) -> 16 kHz samples, after telling the stand-in recogniser what will be said."""


class CallOver(Exception):
    """The call ended while something was waited for; the message says why it ended."""


@dataclass(frozen=True)
class Said:
    """One utterance of the phone: monotonic times at which its sound began and ended."""

    text: str
    start: float
    end: float


class Phone:
    """A telephone, joined to a room as the SIP bridge would join it.

    `times` has monotonic seconds under dialed, joined, ringing, active, agent_joined, agent_left,
    first_sound, hung_up and gone, each once it happened.
    """

    def __init__(
        self,
        number: str,
        *,
        announce: Announce | None = None,
        line: TelephoneLine | None = None,
        quality: LineQuality | None = None,
        voice: str = "caller",
    ) -> None:
        self.number = number
        self.voice = voice
        self.is_inbound = False
        self.identity = ""
        self.room_name = ""
        self.call_id = ""
        self.trunk_id = ""
        self.room = rtc.Room()
        self.status = ""
        self.times: dict[str, float] = {"dialed": time.monotonic()}
        self.said: list[Said] = []
        self.keys_heard: list[str] = []
        self.transfer: str | int = "accept"  # what it answers to a REFER: see bridge.Line
        self.transfer_s = 0.3
        self.transfers: list[str] = []
        self.ringback: list[tuple[float, float]] = []
        """When it heard ringing instead of the room (monotonic)."""
        self.active = asyncio.Event()
        self.gone = asyncio.Event()
        self.gone_reason = ""
        self.script: asyncio.Task[None] | None = None
        self._announce = announce
        self._line = line
        self._quality = quality or LineQuality()
        self.mouth = Mouth(self._quality, seed=len(number))
        self.started = time.monotonic()
        self.ear = Earpiece(self.started, line)
        self._source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=500)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._is_muted = False

    # ------------------------------------------------------------------ the call

    async def join(self, url: str, token: str, *, listens: bool) -> None:
        """Connect and publish, as the bridge does before it rings; `listens`: hears at once."""
        room = self.room
        room.on("track_subscribed", self._on_track)
        room.on("track_unsubscribed", self._on_track_end)
        room.on("track_published", self._on_published)
        room.on("disconnected", self._on_disconnected)
        room.on("sip_dtmf_received", self._on_key)
        room.on("participant_connected", self._on_joined)
        room.on("participant_disconnected", self._on_left)
        await room.connect(url, token, rtc.RoomOptions(auto_subscribe=listens))
        self.room_name = room.name
        self.identity = room.local_participant.identity
        for participant in room.remote_participants.values():
            self._on_joined(participant)
        track = rtc.LocalAudioTrack.create_audio_track("sip", self._source)
        options = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False, red=False
        )
        self.started = time.monotonic() + LEAD_S
        self.ear = Earpiece(self.started, self._line)
        await room.local_participant.publish_track(track, options)
        self._do("send", self._send())
        self.times["joined"] = time.monotonic()

    async def set_status(self, status: str, **attributes: str) -> None:
        """`sip.callStatus`, seen by the agent within 20 ms; `active` also opens both ears."""
        self.status = status
        self.times[status] = time.monotonic()
        shown = {"sip.callStatus": status, **{f"sip.{k}": v for k, v in attributes.items()}}
        update = self.room.local_participant.set_attributes(shown)
        # The room may be gone, and the SDK misses one acknowledgement in a hundred and waits 5 s.
        with contextlib.suppress(CallOver, asyncio.TimeoutError):
            await self._unless_gone(asyncio.wait_for(update, ACK_S))
        if status == "active":
            self.active.set()
            for participant in self.room.remote_participants.values():
                for publication in participant.track_publications.values():
                    publication.set_subscribed(True)
        self._tell()

    async def hang_up(self, reason: str = "hung up") -> None:
        """The owner hangs up; `reason` becomes `gone_reason`."""
        if not self.gone.is_set():
            self.times.setdefault("hung_up", time.monotonic())
            await self.set_status("hangup")
            await self.leave(reason)

    async def leave(
        self,
        reason: str,
        as_: rtc.DisconnectReason.ValueType = rtc.DisconnectReason.CLIENT_INITIATED,
    ) -> None:
        """Out of the room without a hang-up status, as the bridge does when a dial fails."""
        if not self.gone.is_set():
            self._end(reason)
            await self.room.disconnect(reason=as_)

    async def ended(self, timeout: float = 15.0) -> str:
        """`gone_reason`, once the call is over; TimeoutError if it isn't in `timeout` seconds."""
        if not await self.gone_within(timeout):
            raise TimeoutError(f"{self.number}: the call still lasts after {timeout} s")
        return self.gone_reason

    async def gone_within(self, seconds: float) -> bool:
        """Whether the call ends within so many seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.gone.wait(), seconds)
        return self.gone.is_set()

    # ------------------------------------------------------------------ speaking

    async def say(self, what: str | np.ndarray, *, voice: str | None = None) -> Said:
        """Say a text, or play 16 kHz samples; returns when the last of it is sent.

        Cancelling it falls silent at once. Raises CallOver if the call ends first.
        """
        text = what if isinstance(what, str) else ""
        pcm = what if isinstance(what, np.ndarray) else await self._spoken(text, voice)
        if self._line and len(pcm):
            pcm = self._line(pcm)
        first, last = await self._unless_gone(self.mouth.say(pcm))
        sent = self.started + last / SAMPLE_RATE
        await self._unless_gone(asyncio.sleep(sent - time.monotonic()))
        sound = np.flatnonzero(levels(pcm) > LOUD)
        start, end = (sound[0], sound[-1] + 1) if len(sound) else (0, 0)
        begun = self.started + first / SAMPLE_RATE + start / 100
        said = Said(text, begun, sent - max(0.0, len(pcm) / SAMPLE_RATE - end / 100))
        self.said.append(said)
        return said

    async def press(self, keys: str) -> None:
        """Keypad tones, one each 0.2 s; `w` waits 0.5 s."""
        for key in keys:
            if key == "w":
                await self._unless_gone(asyncio.sleep(0.5))
                continue
            code = KEYS.index(key)
            await self._unless_gone(self.room.local_participant.publish_dtmf(code=code, digit=key))
            await self._unless_gone(asyncio.sleep(0.2))

    # ------------------------------------------------------------------ hearing

    async def agent_speaks(self, timeout: float = 15.0, *, since: float | None = None) -> float:
        """When sound was first heard at or after `since` (monotonic; default now), waited for.

        Raises TimeoutError after `timeout` seconds, CallOver if the call ends first.
        """
        since = time.monotonic() if since is None else since
        return await self._heard(lambda: self.ear.first_sound(since), timeout, "no sound was heard")

    async def agent_quiet(self, for_s: float = 0.8, timeout: float = 15.0) -> float:
        """The end of the last sound (else when it was dialed), once silence lasts `for_s`."""

        def quiet_since() -> float | None:
            last = self.ear.last_sound() or self.times["dialed"]
            return last if time.monotonic() - last >= for_s else None

        return await self._heard(quiet_since, timeout, f"never quiet for {for_s} s")

    async def agent_says(
        self, timeout: float = 15.0, *, since: float | None = None, quiet_s: float = 0.8
    ) -> tuple[float, float]:
        """(start, end) of what is said at or after `since`, once `quiet_s` of silence follow it."""
        deadline = time.monotonic() + timeout
        start = await self.agent_speaks(timeout, since=since)
        return start, await self.agent_quiet(quiet_s, deadline - time.monotonic())

    async def became_active(self, timeout: float = 15.0) -> float:
        """When the call was answered, waited for."""
        return await self._heard(lambda: self.times.get("active"), timeout, "not answered")

    async def hears_keys(self, count: int, timeout: float = 15.0) -> str:
        """The keypad tones it was sent, once there are `count`."""

        def keys() -> str | None:
            return "".join(self.keys_heard) if len(self.keys_heard) >= count else None

        return await self._heard(keys, timeout, f"fewer than {count} keypad tones")

    def recording(self) -> Recording:
        """Both voices so far."""
        if self.gone.is_set():
            self.ear.flush()
        end = max(self.mouth.tape.length, self.ear.tape.length)
        own, heard = self.mouth.tape.read(0, end), self.ear.tape.read(0, end)
        return Recording(own, heard, self.started)

    @contextlib.asynccontextmanager
    async def hearing_ringback(self) -> AsyncIterator[None]:
        """Meanwhile the phone hears ringing instead of the room: the bridge's play_dialtone."""
        self._is_muted = True
        begun = time.monotonic()
        self._do("ringback", self._ring())
        try:
            yield
        finally:
            self._is_muted = False
            self._tasks.pop("ringback").cancel()
            self.ringback.append((begun, time.monotonic()))
            self.ear.leave("ringback")

    # ------------------------------------------------------------------ inside

    async def _spoken(self, text: str, voice: str | None) -> np.ndarray:
        if self._announce is None:
            raise ValueError("this phone was given no voice: PhoneNetwork(announce=...)")
        return await asyncio.to_thread(self._announce, text, voice or self.voice)

    async def _send(self) -> None:
        try:
            await self._send_frames()
        finally:
            await self._source.aclose()

    async def _send_frames(self) -> None:
        for packet in itertools.count(0, PACKETS):
            late = time.monotonic() - (self.started - LEAD_S + packet * FRAME_S)
            if late < 0:
                await asyncio.sleep(-late)
            elif late > LEAD_S:  # this process stood still: the voice goes on after a gap
                continue
            frames = [self.mouth.frame((packet + n) * FRAME) for n in range(PACKETS)]
            sound = np.concatenate(frames)
            await self._source.capture_frame(
                rtc.AudioFrame(sound.tobytes(), SAMPLE_RATE, 1, len(sound))
            )
            self._tell()

    async def _listen(self, track: rtc.Track) -> None:
        size_ms = round(PACKETS * FRAME_S * 1000)
        stream = rtc.AudioStream(
            track, sample_rate=SAMPLE_RATE, num_channels=1, frame_size_ms=size_ms
        )
        try:
            async for event in stream:
                if self._is_muted:
                    self.ear.leave(track.sid)
                else:
                    self._take(track.sid, np.frombuffer(event.frame.data, np.int16))
        finally:
            self.ear.leave(track.sid)
            await stream.aclose()

    def _take(self, source: str, pcm: np.ndarray) -> None:
        self.ear.hear(source, pcm)
        if self.ear.loud:
            self.times.setdefault("first_sound", self.ear.loud[0])
        self._tell()

    async def _ring(self) -> None:
        tone = ringback()
        begun = time.monotonic()
        for tick in itertools.count(1):
            await asyncio.sleep(begun + tick * FRAME_S - time.monotonic())
            at = (tick - 1) * FRAME % len(tone)
            self._take("ringback", tone[at : at + FRAME])

    async def _unless_gone(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise CallOver(self.gone_reason)
        finally:
            gone.cancel()
            task.cancel()

    async def _heard(self, look: Callable[[], T | None], timeout: float, otherwise: str) -> T:
        """What `look` finds, asked again at each sound and each 40 ms."""
        deadline = time.monotonic() + timeout
        while (found := look()) is None:
            if self.gone.is_set():
                raise CallOver(self.gone_reason)
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError(f"{self.number}: {otherwise} in {timeout:g} s")
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait({waiter}, timeout=left)
            finally:
                self._waiters.discard(waiter)
        return found

    def _tell(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _do(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[name] = asyncio.create_task(work)

    def _end(self, reason: str) -> None:
        self.gone_reason = reason
        self.times["gone"] = time.monotonic()
        self.gone.set()
        for task in self._tasks.values():
            task.cancel()
        self._tell()

    # ------------------------------------------------------------------ the room's events

    def _on_track(self, track: rtc.Track, publication: object, participant: object) -> None:
        if track.kind != rtc.TrackKind.KIND_AUDIO:
            return
        self._do(track.sid, self._listen(track))
        if self.is_inbound and not self.active.is_set():
            self.active.set()
            self._do("answer", self.set_status("active"))

    def _on_track_end(self, track: rtc.Track, publication: object, participant: object) -> None:
        if task := self._tasks.pop(track.sid, None):
            task.cancel()

    def _on_published(self, publication: rtc.RemoteTrackPublication, participant: object) -> None:
        if self.active.is_set():
            publication.set_subscribed(True)

    def _on_joined(self, participant: rtc.RemoteParticipant) -> None:
        if participant.kind == AGENT:
            self.times.setdefault("agent_joined", time.monotonic())
            self._tell()

    def _on_left(self, participant: rtc.RemoteParticipant) -> None:
        if participant.kind == AGENT:
            self.times["agent_left"] = time.monotonic()
            self._tell()

    def _on_key(self, event: rtc.SipDTMF) -> None:
        self.keys_heard.append(event.digit)
        self._tell()

    def _on_disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        if not self.gone.is_set():
            self._end(rtc.DisconnectReason.Name(reason))
