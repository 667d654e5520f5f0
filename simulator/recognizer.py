"""One stream of the stand-in speech-to-text, in Deepgram's wire format."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from simulator import speech
from simulator.ear import Ear, Heard
from simulator.faults import Behavior

LOUD = 150.0
QUIET_S = 0.2
"""Silence that ends a segment."""
INTERIM_S = 0.4
LONGEST_GAP_S = 2.0
"""Silence after which an utterance is not gone on with."""
LEAD_S = 0.2


class Recognizer:
    """Cuts what it hears at silences and sends what its ear knows of it.

    An utterance may have silences in it: where words broke off, or a segment is not understood by
    itself, it is looked at together with the one before it, and only words that are new are sent.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        ear: Ear,
        rate: int,
        behavior: Behavior,
        note: Callable[[str, str], None],
    ) -> None:
        self._socket = socket
        self._ear = ear
        self._rate = rate
        self._behavior = behavior
        self._note = note
        self._audio = np.zeros(0, np.int16)
        """From shortly before the utterance on, at 16 kHz."""
        self._is_talking = False
        self._last_loud = 0.0
        """Monotonic time of the last loud sample."""
        self._quiet_s = 0.0
        self._new_s = 0.0
        """Audio since the last interim result."""
        self._sent_words = 0
        """Of what is kept from before this segment."""
        self._has_before = False
        """Whether anything is; `_broke_off`: whether its words go on."""
        self._broke_off = False
        self._heard_s = 0.0
        """Audio of the whole stream; the segment began at `_begun_s`, `_joined` samples into what
        is kept."""
        self._joined = 0
        self._begun_s = 0.0
        self._fault = ""
        """Of this utterance: see `_spoil`."""
        self._order = asyncio.Lock()
        """Finals are sent in the order in which they were spoken."""
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the other side closes the stream."""
        async for message in self._socket:
            if message.type is WSMsgType.BINARY:
                await self._hear(np.frombuffer(message.data, np.int16))
            elif message.type is WSMsgType.TEXT:
                kind = json.loads(message.data).get("type")
                if kind in ("Finalize", "CloseStream") and self._is_talking:
                    self._end_segment(from_finalize=kind == "Finalize")
                if kind == "CloseStream":
                    await asyncio.gather(*self._sending)
                    await self._send({"type": "Metadata", "duration": self._heard_s})
                    break
        for task in self._sending:
            task.cancel()
        await self._socket.close()

    async def _spoil(self) -> None:
        """Take up a fault as somebody begins to speak: `refuse` closes the stream, `cut` does so
        after the first words, `hang` makes it deaf."""
        self._fault = self._fault or self._behavior.next_fault()
        if self._fault == "refuse":
            await self._socket.close(code=1011)

    async def _hear(self, pcm: np.ndarray) -> None:
        if self._fault in ("hang", "refuse"):
            return
        pcm = speech.resample(pcm, self._rate, speech.RATE)
        seconds = len(pcm) / speech.RATE
        self._heard_s += seconds
        self._audio = np.concatenate([self._audio, pcm])
        if np.sqrt(np.mean(pcm.astype(np.float32) ** 2)) > LOUD:
            self._last_loud = time.monotonic()
            self._quiet_s = 0.0
            if not self._is_talking:
                self._is_talking = True
                self._new_s = 0.0
                self._begun_s = self._heard_s - seconds
                self._joined = max(0, len(self._audio) - len(pcm) - round(LEAD_S * speech.RATE))
                await self._spoil()
                if self._fault in ("hang", "refuse"):
                    return
                started = {"channel": [0, 1], "timestamp": self._begun_s}
                await self._send({"type": "SpeechStarted"} | started)
        else:
            self._quiet_s += seconds
        if self._is_talking:
            self._new_s += seconds
            if self._quiet_s >= QUIET_S:
                self._end_segment()
            elif self._new_s >= INTERIM_S:
                self._new_s = 0.0
                await self._interim()
        elif self._quiet_s > LONGEST_GAP_S or not self._has_before:
            self._forget()

    def _forget(self) -> None:
        """Keep only the lead that a next utterance may begin in."""
        self._audio = self._audio[-round(LEAD_S * speech.RATE) :]
        self._sent_words = 0
        self._has_before = self._broke_off = False

    async def _interim(self) -> None:
        _, _, words = self._understand()
        if words:
            until_s = self._heard_s - self._quiet_s
            await self._result(" ".join(words), (self._begun_s, until_s), is_final=False)
            if self._fault == "cut":
                await self._socket.close(code=1011)

    def _end_segment(self, *, from_finalize: bool = False) -> None:
        self._is_talking = False
        heard, is_joined, words = self._understand(is_over=True)
        self._note("stt", f"{' '.join(words)} (score {heard.score:.2f})")
        span = (self._begun_s, self._heard_s - self._quiet_s)
        final = self._final(" ".join(words), span, self._last_loud, from_finalize)
        task = asyncio.ensure_future(final)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        if not is_joined:
            self._audio = self._audio[self._joined :]
            self._sent_words = 0
        self._sent_words += len(words)
        self._has_before = True
        self._broke_off = heard.text is not None and heard.cover < 0.9

    def _understand(self, *, is_over: bool = False) -> tuple[Heard, bool, list[str]]:
        """The segment as heard, whether together with what was before it, and its new words."""
        readings = [True, False] if self._broke_off else [False, True][: 1 + self._has_before]
        for is_joined in readings if is_over else readings[:1]:
            heard = self._ear.hear(
                self._trimmed()[0 if is_joined else self._joined :],
                whole=is_over and not is_joined,
                min_score=0.6 if is_over else 0.55,
            )
            if heard.text:
                words = heard.text.split()
                return heard, is_joined, words[self._sent_words if is_joined else 0 :]
        return heard, False, []

    def _trimmed(self) -> np.ndarray:
        """What was heard so far, without the silence at its end."""
        return self._audio[: len(self._audio) - round(self._quiet_s * speech.RATE) or None]

    async def _final(
        self, words: str, span: tuple[float, float], spoken_until: float, from_finalize: bool
    ) -> None:
        """The words of a segment; none if it was not understood: it is over all the same."""
        due = spoken_until + self._behavior.delay.seconds()
        async with self._order:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._fault == "cut":
                await self._socket.close(code=1011)
                return
            await self._result(words, span, is_final=True, from_finalize=from_finalize)

    async def _result(
        self,
        text: str,
        span: tuple[float, float],
        *,
        is_final: bool,
        from_finalize: bool = False,
    ) -> None:
        """`span`: where in the stream the words are (s); each takes an equal share of it."""
        start, end = span
        each = (end - start) / max(1, len(text.split()))
        words = [
            {
                "word": re.sub(r"[^\w']", "", word.lower()),
                "punctuated_word": word,
                "start": round(start + at * each, 3),
                "end": round(start + (at + 1) * each, 3),
                "confidence": 0.95,
            }
            for at, word in enumerate(text.split())
        ]
        alternative = {"transcript": text, "confidence": 0.95, "words": words, "languages": ["en"]}
        await self._send(
            {
                "type": "Results",
                "is_final": is_final,
                "speech_final": is_final,
                "from_finalize": from_finalize,
                "start": start,
                "duration": end - start,
                "channel_index": [0, 1],
                "metadata": {"request_id": "stand-in", "model_info": {}},
                "channel": {"alternatives": [alternative]},
            }
        )

    async def _send(self, message: dict[str, Any]) -> None:
        if not self._socket.closed:
            await self._socket.send_json(message)
