"""A call as recorded at the phone, and what can be measured in it without knowing how it was made.

Left is the phone's own voice, right what it heard; 16 kHz, both on one clock.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simulator.handset import LOUD, SAMPLE_RATE, levels

if TYPE_CHECKING:
    from simulator.ear import Ear

_EDGE_S = 0.03
_LONGEST_PAUSE_S = 1.0  # within one utterance
_LONGEST_S = 30.0


@dataclass(frozen=True, eq=False)
class Recording:
    """Two channels of int16 samples; `started` is the monotonic time of the first."""

    own: np.ndarray
    heard: np.ndarray
    started: float = 0.0

    @property
    def duration_s(self) -> float:
        return len(self.own) / SAMPLE_RATE

    def save(self, path: str | Path) -> Path:
        """A stereo WAV file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(np.column_stack([self.own, self.heard]).astype("<i2").tobytes())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """ValueError unless it is a stereo WAV file of 16-bit samples at 16 kHz."""
        with wave.open(str(path), "rb") as file:
            shape = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            if shape != (2, 2, SAMPLE_RATE):
                raise ValueError(f"{path}: not a stereo recording of 16-bit samples at 16 kHz")
            pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        return cls(pcm[:, 0].astype(np.int16), pcm[:, 1].astype(np.int16))

    def since(self, at: float) -> Recording:
        """The part from monotonic time `at` on."""
        first = max(0, round((at - self.started) * SAMPLE_RATE))
        return Recording(self.own[first:], self.heard[first:], self.started + first / SAMPLE_RATE)


@dataclass(frozen=True)
class Segment:
    """A stretch of sound, in seconds from the start of its recording."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def of(self, pcm: np.ndarray) -> np.ndarray:
        return pcm[round(self.start_s * SAMPLE_RATE) : round(self.end_s * SAMPLE_RATE)]


@dataclass(frozen=True)
class HeardSegment:
    """A stretch of sound and the announced words it was recognised as.

    `text` is those words as far as they were heard, `cover` the share of the utterance that was;
    empty and 0 if nothing was recognised.
    """

    segment: Segment
    text: str
    score: float
    cover: float


@dataclass(frozen=True)
class Cut:
    """Speech that ends (or begins) without the fall (or rise) that speech has: a clipped word.

    `jump_db` is the change of level from one 10 ms to the next at that edge.
    """

    segment: Segment
    edge: str  # "start" or "end"
    jump_db: float


def speech_segments(
    pcm: np.ndarray, *, threshold: float = LOUD, gap_s: float = 0.4, least_s: float = 0.03
) -> list[Segment]:
    """Stretches whose 10 ms levels (RMS) pass `threshold`, joined over gaps up to `gap_s`."""
    loud = np.flatnonzero(levels(pcm) > threshold)
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) > gap_s * 100)
    starts = loud[np.concatenate([[0], breaks + 1])]
    ends = loud[np.concatenate([breaks, [len(loud) - 1]])] + 1
    found = [Segment(s / 100, e / 100) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]
    return [segment for segment in found if segment.duration_s >= least_s]


def reply_ms(recording: Recording, *, gap_s: float = 0.4) -> list[float | None]:
    """For each utterance of the phone, ms from its end to the agent's first sound after it.

    None where the agent was speaking at that end, where the phone spoke again first, or where
    nothing was said any more.
    """
    own = speech_segments(recording.own, gap_s=gap_s)
    heard = speech_segments(recording.heard, gap_s=gap_s)
    replies: list[float | None] = []
    for index, said in enumerate(own):
        until = own[index + 1].start_s if index + 1 < len(own) else float("inf")
        talked_over = any(h.start_s < said.end_s < h.end_s for h in heard)
        starts = [h.start_s for h in heard if said.end_s <= h.start_s < until]
        replies.append(None if talked_over or not starts else (starts[0] - said.end_s) * 1000)
    return replies


def overlap_ms(recording: Recording, *, threshold: float = LOUD) -> float:
    """How long both spoke at once, pauses shorter than 200 ms within speech included."""
    both = 0.0
    for said in speech_segments(recording.own, threshold=threshold, gap_s=0.2):
        for heard in speech_segments(recording.heard, threshold=threshold, gap_s=0.2):
            both += max(0.0, min(said.end_s, heard.end_s) - max(said.start_s, heard.start_s))
    return both * 1000


def level_db(pcm: np.ndarray, *, threshold: float = LOUD) -> float | None:
    """RMS of the speech in `pcm`, its pauses left out, in dBFS; None if there is no speech."""
    block_levels = levels(pcm)
    loud = block_levels[block_levels > threshold]
    if not len(loud):
        return None
    return float(10 * np.log10(np.mean(loud.astype(np.float64) ** 2) / 32768.0**2))


def cuts(
    pcm: np.ndarray, *, gap_s: float = 0.2, jump_db: float = 25.0, edges: Sequence[str] = ("end",)
) -> list[Cut]:
    """Abrupt edges: full speech level within 10 ms of next to nothing.

    Words begin so of themselves (7 of 16 did), hence only ends by default: see `missing_ms`.
    """
    block_levels = np.concatenate([[0.0], levels(pcm), [0.0]])
    found = []
    for segment in speech_segments(pcm, gap_s=gap_s):
        first, last = round(segment.start_s * 100) + 1, round(segment.end_s * 100)
        typical = float(np.median(block_levels[first : last + 1]))
        for edge, inside, outside in (("start", first, first - 1), ("end", last, last + 1)):
            jump = 20 * np.log10((block_levels[inside] + 1) / (block_levels[outside] + 1))
            if edge in edges and jump >= jump_db and block_levels[inside] >= typical / 2:
                found.append(Cut(segment, edge, float(jump)))
    return found


def missing_ms(heard: np.ndarray, spoken: np.ndarray) -> tuple[float, float]:
    """How much of the start and of the end of `spoken` is not in `heard`: if at least half is,
    within 20 ms and 110 ms of the truth (95 of 100 random cuts).

    `heard` is one recognised stretch with some silence around it, `spoken` what was to be heard.
    """
    there, here = levels(spoken), levels(heard)
    plain = np.flatnonzero(there > 2 * LOUD)
    if not len(plain):
        return 0.0, 0.0
    a, b = (np.log(np.maximum(level, LOUD / 2) / LOUD * 2) for level in (there, here))
    shift = int(np.argmax(np.correlate(b, a, "full"))) - len(a) + 1
    at = plain + shift
    inside = (at >= 0) & (at < len(here))
    found = plain[inside][here[at[inside]] > LOUD / 2]
    if not len(found):
        return float(plain[-1] - plain[0] + 1) * 10, 0.0
    return float(found[0] - plain[0]) * 10, float(plain[-1] - found[-1]) * 10


def heard_words(pcm: np.ndarray, ear: Ear, *, gap_s: float = 0.12) -> list[HeardSegment]:
    """Which announced utterances the sound was, in order, pauses within them included."""
    pieces = speech_segments(pcm, gap_s=gap_s)
    found = []
    while pieces:
        taken, best = 1, _recognised(pcm, pieces[:1], ear)
        for count in range(2, len(pieces) + 1):
            longer = pieces[count - 1]
            pause_s = longer.start_s - pieces[count - 2].end_s
            if pause_s > _LONGEST_PAUSE_S or longer.end_s - pieces[0].start_s > _LONGEST_S:
                break
            joined = _recognised(pcm, pieces[:count], ear)
            if _worth(joined) > _worth(best) + 0.02:
                taken, best = count, joined
        found.append(best)
        del pieces[:taken]
    return found


def _recognised(pcm: np.ndarray, pieces: list[Segment], ear: Ear) -> HeardSegment:
    segment = Segment(pieces[0].start_s, pieces[-1].end_s)
    padded = Segment(max(0.0, segment.start_s - _EDGE_S), segment.end_s + _EDGE_S)
    heard = ear.hear(padded.of(pcm), whole=False)
    return HeardSegment(segment, heard.text or "", heard.score, heard.cover if heard.text else 0.0)


def _worth(heard: HeardSegment) -> float:
    """More of an utterance is worth more than a closer match with less of it."""
    return heard.score + 0.5 * heard.cover if heard.text else 0.0


def heard_ratio(expected: Sequence[str], pcm: np.ndarray, ear: Ear) -> float:
    """Share of the words of `expected` sentences that was heard, 0 to 1 (1 if there are none)."""
    words = [len(sentence.split()) for sentence in expected]
    if not sum(words):
        return 1.0
    heard = heard_words(pcm, ear)
    covers = [
        max(
            (part.cover for part in heard if part.text and sentence.startswith(part.text)),
            default=0,
        )
        for sentence in expected
    ]
    return sum(w * c for w, c in zip(words, covers, strict=True)) / sum(words)
