"""Fixtures for the simulator's own tests: a phone network and an agent that plays tones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from livekit import api, rtc

from simulator.handset import SAMPLE_RATE
from simulator.livekit_server import LiveKitServer
from simulator.network import PhoneNetwork
from simulator.speech import synthesize

NUMBER = "+15550200001"
MINE = "+15550199999"


def tone(seconds: float, hz: float = 700, peak: int = 8000) -> np.ndarray:
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (np.sin(2 * np.pi * hz * t) * peak).astype(np.int16)


class ToneAgent:
    """An agent in a room: it plays tones and keeps what it sees and hears."""

    def __init__(self, network: PhoneNetwork) -> None:
        self._network = network
        self.room = rtc.Room()
        self.keys: list[str] = []
        self.statuses: list[str] = []
        self.left: list[int | None] = []
        self.loud: list[float] = []
        self._sources: list[rtc.AudioSource] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.room.on("sip_dtmf_received", lambda event: self.keys.append(event.digit))
        self.room.on("participant_connected", lambda p: self._changed(p.attributes, p))
        self.room.on("participant_attributes_changed", self._changed)
        self.room.on("participant_disconnected", lambda p: self.left.append(p.disconnect_reason))
        self.room.on("track_subscribed", self._subscribed)

    async def join(self, room: str) -> ToneAgent:
        livekit = self._network.livekit
        token = (
            api.AccessToken(livekit.key, livekit.secret)
            .with_identity("agent")
            .with_kind("agent")
            .with_grants(api.VideoGrants(room_join=True, room=room))
        )
        await self.room.connect(self._network.url, token.to_jwt())
        return self

    async def publish(self) -> None:
        source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=4000)
        track = rtc.LocalAudioTrack.create_audio_track("voice", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self.room.local_participant.publish_track(track, options)
        self._sources.append(source)

    async def play(self, pcm: np.ndarray, track: int = 0) -> None:
        frame = rtc.AudioFrame(pcm.tobytes(), SAMPLE_RATE, 1, len(pcm))
        await self._sources[track].capture_frame(frame)

    def attributes(self) -> dict[str, str]:
        (participant,) = self.room.remote_participants.values()
        return dict(participant.attributes)

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.room.disconnect()

    def _changed(self, changed: dict[str, str], participant: rtc.Participant) -> None:
        status = changed.get("sip.callStatus")
        if status and status not in self.statuses[-1:]:
            self.statuses.append(status)

    def _subscribed(self, track: rtc.Track, *rest: object) -> None:
        self._tasks.append(asyncio.create_task(self._hear(track)))

    async def _hear(self, track: rtc.Track) -> None:
        async for event in rtc.AudioStream(track, sample_rate=SAMPLE_RATE, num_channels=1):
            pcm = np.frombuffer(event.frame.data, np.int16).astype(float)
            if np.sqrt(np.mean(pcm**2)) > 500:
                self.loud.append(time.monotonic())


def announced(text: str, voice: str) -> np.ndarray:
    return synthesize(text, voice=voice)


@pytest_asyncio.fixture
async def network() -> AsyncIterator[PhoneNetwork]:
    livekit = LiveKitServer()
    await livekit.start()
    network = PhoneNetwork(livekit, announce=announced, line=None)
    await network.start()
    yield network
    await network.stop()
    await livekit.stop()


@pytest_asyncio.fixture
async def livekit(network: PhoneNetwork) -> AsyncIterator[api.LiveKitAPI]:
    async with network.api() as client:
        yield client


@pytest_asyncio.fixture
async def agent(network: PhoneNetwork) -> AsyncIterator[ToneAgent]:
    agent = ToneAgent(network)
    yield agent
    await agent.leave()


@pytest_asyncio.fixture
async def trunk(livekit: api.LiveKitAPI) -> str:
    info = api.SIPOutboundTrunkInfo(name="out", address="carrier.test", numbers=[MINE])
    made = await livekit.sip.create_outbound_trunk(api.CreateSIPOutboundTrunkRequest(trunk=info))
    return made.sip_trunk_id


def request(trunk_id: str, **more: Any) -> api.CreateSIPParticipantRequest:
    ring = more.pop("ring", 2)
    values: dict[str, Any] = {
        "sip_trunk_id": trunk_id,
        "sip_call_to": NUMBER,
        "room_name": "out",
        "participant_identity": "callee",
        "wait_until_answered": True,
        "ringing_timeout": Duration(seconds=ring),
    }
    return api.CreateSIPParticipantRequest(**values | more)


async def until(claim: Any, timeout: float = 3.0) -> None:
    deadline = time.monotonic() + timeout
    while not claim():
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.01)
