"""A call as recorded at the phone, and what can be measured in it without knowing how it was made.

Left is the phone's own voice, right what it heard; 16 kHz, both on one clock.
"""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.handset import LOUD, SAMPLE_RATE, levels


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


def cut_ends(pcm: np.ndarray, *, gap_s: float = 0.2, jump_db: float = 25.0) -> list[Segment]:
    """Stretches of speech that end without the fall that speech has: full level within 10 ms of
    next to nothing. Beginnings can't be told so (7 of 16 words begin abruptly): see `missing_ms`.
    """
    block_levels = np.concatenate([levels(pcm), [0.0]])
    found = []
    for segment in speech_segments(pcm, gap_s=gap_s):
        first, last = round(segment.start_s * 100), round(segment.end_s * 100) - 1
        typical = float(np.median(block_levels[first : last + 1]))
        jump = 20 * np.log10((block_levels[last] + 1) / (block_levels[last + 1] + 1))
        if jump >= jump_db and block_levels[last] >= typical / 2:
            found.append(segment)
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
