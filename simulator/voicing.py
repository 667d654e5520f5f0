"""One connection of the stand-in text-to-speech, in Cartesia's wire format."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from simulator import speech
from simulator.ear import Ear
from simulator.faults import Behavior, hang

CHUNK_S = 0.25
AFTER_SENTENCE_S = 0.3


class Voicing:
    """Voices each sentence as it comes in, context by context, until the connection closes."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        ear: Ear,
        behavior: Behavior,
        fault: str,
        note: Callable[[str, str], None],
    ) -> None:
        self._socket = socket
        self._ear = ear
        self._behavior = behavior
        self._fault = fault
        self._note = note
        self._cancelled: set[str] = set()
        self._work: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue()

    async def run(self) -> None:
        voicing = asyncio.ensure_future(self._voice_all())
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                continue
            request = json.loads(message.data)
            if request.get("cancel"):
                self._cancelled.add(request["context_id"])
            else:
                self._work.put_nowait((time.monotonic(), request))
        voicing.cancel()

    async def _voice_all(self) -> None:
        while True:
            arrived, request = await self._work.get()
            if self._fault == "hang":
                await hang()
            for sentence in re.split(r"(?<=[.!?])\s+", (request.get("transcript") or "").strip()):
                if sentence and request["context_id"] not in self._cancelled:
                    await self._voice(sentence, request, arrived)
            if request.get("continue") is not True:
                await self._send(request, {"type": "done", "done": True, "status_code": 200})

    async def _voice(self, sentence: str, request: dict[str, Any], arrived: float) -> None:
        rate = request.get("output_format", {}).get("sample_rate", 24_000)
        known, pcm = await asyncio.to_thread(_spoken, sentence, rate)
        self._ear.learn(sentence, known)
        self._note("tts", sentence)
        due = arrived + self._behavior.delay.seconds()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        audio = np.concatenate([pcm, speech.silence(AFTER_SENTENCE_S, rate)])
        step = round(rate * CHUNK_S)
        for start in range(0, len(audio), step):
            if self._fault == "cut" and start:
                await self._socket.close()
                return
            data = base64.b64encode(audio[start : start + step].tobytes()).decode()
            await self._send(request, {"type": "chunk", "done": False, "data": data})

    async def _send(self, request: dict[str, Any], message: dict[str, Any]) -> None:
        if not self._socket.closed:
            base = {"context_id": request["context_id"], "status_code": 206, "step_time": 1.0}
            await self._socket.send_json(base | message)


def _spoken(sentence: str, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The sentence at 16 kHz, as an ear knows it, and at the rate asked for."""
    known = speech.synthesize(sentence, voice="agent")
    return known, speech.resample(known, speech.RATE, rate)
