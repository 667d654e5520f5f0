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
from simulator.faults import Behavior

CHUNK_S = 0.25
AFTER_SENTENCE_S = 0.3


class Voicing:
    """Voices each sentence as it comes in, context by context, until the connection closes."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        ear: Ear,
        behavior: Behavior,
        note: Callable[[str, str], None],
    ) -> None:
        self._socket = socket
        self._ear = ear
        self._behavior = behavior
        self._note = note
        self._cancelled: set[str] = set()
        self._faults: dict[str, str] = {}
        """By context: a connection is used for many."""
        self._voiced_s: dict[str, float] = {}
        """Audio sent so far, by context."""
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
            if await self._fails(request):
                continue
            for sentence in re.split(r"(?<=[.!?])\s+", (request.get("transcript") or "").strip()):
                if sentence and request["context_id"] not in self._cancelled:
                    await self._voice(sentence, request, arrived)
            if request.get("continue") is not True:
                await self._send(request, {"type": "done", "done": True, "status_code": 200})

    async def _fails(self, request: dict[str, Any]) -> bool:
        """Whether a fault leaves this context without audio."""
        context = request["context_id"]
        is_new = context not in self._faults
        fault = self._faults[context] if not is_new else self._behavior.next_fault()
        self._faults[context] = fault
        if fault == "refuse" and is_new:
            error = {"type": "error", "done": True, "status_code": 503, "error": "overloaded"}
            await self._send(request, error)
        return fault in ("refuse", "hang")

    async def _voice(self, sentence: str, request: dict[str, Any], arrived: float) -> None:
        rate = request.get("output_format", {}).get("sample_rate", 24_000)
        known, pcm = await asyncio.to_thread(_spoken, sentence, rate)
        self._ear.learn(sentence, known)
        self._note("tts", sentence)
        due = arrived + self._behavior.delay.seconds()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        audio = np.concatenate([pcm, speech.silence(AFTER_SENTENCE_S, rate)])
        step = round(rate * CHUNK_S)
        context = request["context_id"]
        begun_s = self._voiced_s.get(context, 0.0)
        self._voiced_s[context] = begun_s + len(audio) / rate
        if request.get("add_timestamps"):
            times = _word_times(sentence, begun_s, len(pcm) / rate)
            await self._send(request, {"type": "timestamps", "done": False} | times)
        for start in range(0, len(audio), step):
            if context in self._cancelled:
                return
            if self._faults[context] == "cut" and start:
                await self._socket.close(code=1011)
                return
            data = base64.b64encode(_encoded(audio[start : start + step], request)).decode()
            await self._send(request, {"type": "chunk", "done": False, "data": data})

    async def _send(self, request: dict[str, Any], message: dict[str, Any]) -> None:
        if not self._socket.closed:
            base = {"context_id": request["context_id"], "status_code": 206, "step_time": 1.0}
            await self._socket.send_json(base | message)


def _word_times(sentence: str, begun_s: float, seconds: float) -> dict[str, Any]:
    """When each word is said, as if longer ones took longer by their letters."""
    words = sentence.split()
    letters = np.cumsum([0, *(len(word) for word in words)])
    at = (begun_s + seconds * letters / max(1, letters[-1])).round(3).tolist()
    return {"word_timestamps": {"words": words, "start": at[:-1], "end": at[1:]}}


def _encoded(pcm: np.ndarray, request: dict[str, Any]) -> bytes:
    """int16 samples in the encoding asked for."""
    encoding = request.get("output_format", {}).get("encoding", "pcm_s16le")
    if encoding == "pcm_f32le":
        return (pcm / np.float32(32768)).astype("<f4").tobytes()
    if encoding == "pcm_mulaw":
        return speech.mu_law(pcm)
    return pcm.astype("<i2").tobytes()


def _spoken(sentence: str, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The sentence at 16 kHz, as an ear knows it, and at the rate asked for."""
    known = speech.synthesize(sentence, voice="agent")
    return known, speech.resample(known, speech.RATE, rate)
