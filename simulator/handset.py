"""What one phone says and hears, as samples on one clock.

Sample `n` of either tape was on the wire at `started + n / 16000` (monotonic seconds), so the two
tapes lie side by side as a recording does.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
FRAME = SAMPLE_RATE // 50  # 20 ms, a telephone packet
FRAME_S = FRAME / SAMPLE_RATE
BLOCK = SAMPLE_RATE // 100  # levels are kept per 10 ms
LOUD = 150.0  # RMS of 16-bit samples (-47 dBFS): well over line noise, under the quietest speech
_LEAST_BLOCKS = 3  # a sound shorter than 30 ms is a click
_CONTEXT = 2 * BLOCK  # what a band filter may look at on either side
_JITTER_BUFFER_MS = 60.0

TelephoneLine = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class LineQuality:
    """How bad the line is.

    `loss`: share of 20 ms packets lost. `jitter_ms`: standard deviation of a packet's delay; the
    receiver waits 60 ms, and what is later than that is lost too. `noise`: its highest sample.
    """

    loss: float = 0.0
    jitter_ms: float = 0.0
    noise: int = 4


def levels(pcm: np.ndarray) -> np.ndarray:
    """RMS of each whole 10 ms of 16 kHz samples."""
    blocks = pcm[: len(pcm) // BLOCK * BLOCK].reshape(-1, BLOCK).astype(np.float32)
    power: np.ndarray = np.einsum("ij,ij->i", blocks, blocks) / BLOCK
    np.sqrt(power, out=power)
    return power


class Tape:
    """Samples by position; what was never written is silence."""

    def __init__(self) -> None:
        self._samples = np.zeros(SAMPLE_RATE * 30, np.int32)
        self.length = 0

    def add(self, at: int, pcm: np.ndarray) -> None:
        end = at + len(pcm)
        if end > len(self._samples):
            self._samples = np.concatenate([self._samples, np.zeros(end, np.int32)])
        self._samples[at:end] += pcm
        self.length = max(self.length, end)

    def put(self, at: int, pcm: np.ndarray) -> None:
        self.add(at, np.zeros(len(pcm), np.int32))
        self._samples[at : at + len(pcm)] = pcm

    def read(self, start: int, end: int) -> np.ndarray:
        """int16 samples; silence where nothing was written."""
        piece = self._samples[max(0, start) : end]
        pcm = np.clip(piece, -32768, 32767).astype(np.int16)
        return np.pad(pcm, (max(0, -start), end - max(0, start) - len(pcm)))


@dataclass(eq=False)
class _Utterance:
    pcm: np.ndarray
    sent: asyncio.Future[None]
    position: int = 0
    first: int | None = None  # samples of the tape at which it began and ended
    last: int = 0


class Mouth:
    """The voice a phone sends, frame by frame; silent when it has nothing to say."""

    def __init__(self, quality: LineQuality, seed: int) -> None:
        self.tape = Tape()
        self._quality = quality
        self._queue: deque[_Utterance] = deque()
        self._random = np.random.default_rng(seed)
        self._last = np.zeros(FRAME, np.int16)

    async def say(self, pcm: np.ndarray) -> tuple[int, int]:
        """Returns, when all of `pcm` is sent, where on the tape it began and ended.

        Cancelling it falls silent at once.
        """
        utterance = _Utterance(pcm, asyncio.get_running_loop().create_future())
        self._queue.append(utterance)
        try:
            await utterance.sent
        finally:
            if utterance in self._queue:
                self._queue.remove(utterance)
        assert utterance.first is not None
        return utterance.first, utterance.last

    def frame(self, at: int) -> np.ndarray:
        """The next 20 ms, to be sent as sample `at` of the tape."""
        voice = np.zeros(FRAME, np.int16)
        filled = 0
        while self._queue and filled < FRAME:
            current = self._queue[0]
            if current.first is None:
                current.first = at + filled
            piece = current.pcm[current.position : current.position + FRAME - filled]
            voice[filled : filled + len(piece)] = piece
            filled += len(piece)
            current.position += len(piece)
            if current.position >= len(current.pcm):
                self._queue.popleft()
                current.last = at + filled
                if not current.sent.done():
                    current.sent.set_result(None)
        if self._is_lost():
            voice = self._last // 2  # what a receiver plays instead
        self._last = voice
        self.tape.put(at, voice)
        noise = self._quality.noise
        hiss = self._random.integers(-noise, noise + 1, FRAME, dtype=np.int16)
        sent: np.ndarray = np.clip(voice.astype(np.int32) + hiss, -32768, 32767).astype(np.int16)
        return sent

    def _is_lost(self) -> bool:
        late = self._random.normal(0.0, self._quality.jitter_ms) > _JITTER_BUFFER_MS
        return late or bool(self._random.random() < self._quality.loss)


class Earpiece:
    """All that a phone is sent, mixed into one, through a telephone's band, with its levels."""

    def __init__(self, started: float, line: TelephoneLine | None) -> None:
        self.tape = Tape()
        self.loud: list[float] = []  # monotonic time of each 10 ms block with sound in it
        self._started = started
        self._line = line
        self._mix = Tape()
        self._cursors: dict[object, int] = {}
        self._lateness: dict[object, deque[int]] = {}
        self._arrivals: dict[object, float] = {}
        self._settled = 0  # samples judged so far; nothing is judged twice
        self._run = 0

    def hear(self, source: object, pcm: np.ndarray, arrived: float | None = None) -> None:
        """`pcm` of one track, whose last sample came at monotonic time `arrived` (now)."""
        now = time.monotonic() if arrived is None else arrived
        at = self._place(source, pcm, now)
        self._mix.add(at, pcm)
        self._cursors[source] = at + len(pcm)
        self._arrivals[source] = now
        self._settle(now)

    def leave(self, source: object) -> None:
        """That track has ended."""
        for kept in (self._cursors, self._arrivals, self._lateness):
            kept.pop(source, None)

    def first_sound(self, since: float) -> float | None:
        """When sound was first heard at or after `since`."""
        index = bisect_left(self.loud, since)
        return self.loud[index] if index < len(self.loud) else None

    def last_sound(self) -> float | None:
        """The end of the latest sound."""
        return self.loud[-1] + BLOCK / SAMPLE_RATE if self.loud else None

    def flush(self) -> None:
        """Judge what still waits for samples that will not come."""
        self._judge(self._mix.length)

    def _place(self, source: object, pcm: np.ndarray, arrived: float) -> int:
        """The sample at which `pcm` belongs: right after the track's last one.

        When this process is busy, frames come late and then in a burst, which moves nothing. If
        they are early, the first had been late; if they stay late for a second, some were lost.
        """
        at = max(0, round((arrived - self._started) * SAMPLE_RATE) - len(pcm))
        cursor = self._cursors.setdefault(source, at)
        lateness = self._lateness.setdefault(source, deque(maxlen=25))
        lateness.append(at - cursor)
        is_early = at < cursor - BLOCK // 2 and not np.any(np.abs(pcm) > LOUD)
        if is_early or (len(lateness) == 25 and min(lateness) > SAMPLE_RATE // 20):
            lateness.clear()
            return at
        return cursor

    def _settle(self, now: float) -> None:
        live = [
            self._cursors[source]
            for source, arrived in self._arrivals.items()
            if now - arrived < 0.1
        ]
        self._judge(min(live) - (_CONTEXT if self._line else 0))

    def _judge(self, end: int) -> None:
        start, end = self._settled, end // BLOCK * BLOCK
        if end <= start:
            return
        pcm = self._mix.read(start - _CONTEXT, end + _CONTEXT)
        if self._line and np.any(pcm):
            pcm = self._line(pcm)
        pcm = pcm[_CONTEXT : _CONTEXT + end - start]
        self.tape.put(start, pcm)
        self._settled = end
        for index, level in enumerate(levels(pcm).tolist()):
            self._run = self._run + 1 if level > LOUD else 0
            count = _LEAST_BLOCKS if self._run == _LEAST_BLOCKS else int(self._run > _LEAST_BLOCKS)
            for back in range(count - 1, -1, -1):
                self.loud.append(self._started + (start + (index - back) * BLOCK) / SAMPLE_RATE)


def ringback(seconds: float = 5.0) -> np.ndarray:
    """The European ringing tone, as the bridge plays it: 425 Hz, 1 s in 5, half of full scale."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (np.sin(2 * np.pi * 425 * t) * (t % 5 < 1) * 16383).astype(np.int16)
