"""A recogniser that knows only what was announced to it, and says so when it hears anything else.

It compares log-mel spectra (12 bands from 200 to 3,300 Hz, 40 ms apart) with those of every known
utterance: enough to tell them apart over a telephone line, and nothing like real recognition.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RATE = 16_000
_FRAME, _HOP, _BANDS = 1024, RATE // 25, 12
_SLACK = 8
"""How far (in hops of 40 ms) what is heard may be shifted against what is known."""
_FEWEST = 6


@dataclass(frozen=True)
class Heard:
    """The best match: its words as far as they were heard, its score, the share heard (0-1)."""

    text: str | None
    score: float
    cover: float


@dataclass(frozen=True)
class Found:
    """A known utterance in a recording: where (s), how alike, and the share that came through."""

    text: str
    start_s: float
    end_s: float
    score: float
    cover: float


class Ear:
    """Thread-safe; `learn` before it is spoken, then `hear`."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def transcribe(self, pcm16k: np.ndarray, min_score: float = 0.7) -> list[Found]:
        """The known utterances in a longer recording, in the order in which they were spoken."""
        with self._lock:
            known = list(self._known.items())
        fine = features(pcm16k, _HOP // 2)
        candidates = [
            found
            for (text, _), template in known
            for found in _places(text, template, fine, min_score)
        ]
        chosen: list[Found] = []
        for found in sorted(candidates, key=lambda f: -f.score * (f.end_s - f.start_s)):
            middle = (found.start_s + found.end_s) / 2
            if not any(c.start_s < middle < c.end_s or _encloses(found, c) for c in chosen):
                chosen.append(found)
        return sorted(chosen, key=lambda f: f.start_s)

    def learn(self, text: str, pcm16k: np.ndarray) -> None:
        """Know an utterance: its words and how it sounds."""
        with self._lock:
            if (text, len(pcm16k)) not in self._known:
                self._known[text, len(pcm16k)] = features(pcm16k)

    def hear(self, pcm16k: np.ndarray, *, whole: bool = False, min_score: float = 0.6) -> Heard:
        """The known utterance that `pcm16k` is, or begins with; `whole`: it is over.

        Text is None below `min_score`; if only the beginning was heard, so are its words.
        """
        with self._lock:
            known = list(self._known.items())
        heard = features(pcm16k)
        best = Heard(None, 0.0, 0.0)
        for (text, _), template in known:
            score, cover = _match(heard, template)
            if whole:
                score -= 0.3 * max(0.0, 0.9 - cover)
            if score > best.score:
                best = Heard(text, score, cover)
        if best.text is None or best.score < min_score:
            return Heard(None, best.score, best.cover)
        return Heard(_shortened(best.text, best.cover), best.score, best.cover)


def _shortened(text: str, cover: float) -> str:
    if cover >= 0.9:
        return text
    words = text.split()
    return " ".join(words[: max(1, round(len(words) * cover))])


def _match(heard: np.ndarray, template: np.ndarray) -> tuple[float, float]:
    """The best correlation over all shifts, less for what is heard beyond the template."""
    best = (0.0, 0.0)
    for shift in range(-_SLACK, _SLACK + 1):
        here = heard[shift:] if shift >= 0 else heard
        there = template if shift >= 0 else template[-shift:]
        size = min(len(here), len(there))
        if size < _FEWEST:
            continue
        a, b = here[:size].ravel(), there[:size].ravel()
        a, b = a - a.mean(), b - b.mean()
        score = float(a @ b / (np.sqrt((a @ a) * (b @ b)) + 1e-9))
        score -= 0.3 * max(0.0, len(heard) / len(template) - 1.15)
        score -= 0.002 * abs(shift)
        if score > best[0]:
            best = (score, min(1.0, size / len(template)))
    return best


def _encloses(outer: Found, inner: Found) -> bool:
    return outer.start_s < (inner.start_s + inner.end_s) / 2 < outer.end_s


def _places(text: str, template: np.ndarray, fine: np.ndarray, min_score: float) -> list[Found]:
    """Where a template lies in features of half its hop; repeats are found as well."""
    size = len(template)
    if size < _FEWEST or len(fine) < 2 * size:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(fine, 2 * size, axis=0)[:, :, ::2]
    flat = windows.transpose(0, 2, 1).reshape(len(windows), -1)
    wanted = template.ravel() - template.mean()
    spread = np.sqrt(size * _BANDS) * flat.std(axis=1) + 1e-9
    scores = (flat @ wanted) / (np.linalg.norm(wanted) * spread)
    scores[flat.mean(axis=1) < template.mean() - 4] = 0  # silence is like anything
    found = []
    while len(scores) and (best := int(np.argmax(scores))) >= 0 and scores[best] >= min_score:
        there = flat[best].reshape(template.shape)
        start = best * _HOP / 2 / RATE
        end = start + size * _HOP / RATE
        found.append(Found(text, start, end, float(scores[best]), _came_through(there, template)))
        scores[max(0, best - size) : best + size] = 0
    return found


def _came_through(heard: np.ndarray, template: np.ndarray) -> float:
    """The share of the template's sounding frames that are as loud in what was heard."""
    sounding = template.mean(axis=1) > template.mean() - template.std() / 2
    gap = template.mean(axis=1) - heard.mean(axis=1)
    usual = np.median(gap[sounding])
    return float(np.mean(gap[sounding] < usual + 3.0))


def features(pcm16k: np.ndarray, hop: int = _HOP) -> np.ndarray:
    """(hops, bands): log-mel energies above a floor that line noise stays under."""
    padded = np.pad(pcm16k.astype(np.float32), (0, max(0, _FRAME - len(pcm16k))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::hop]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(_FRAME).astype(np.float32))) ** 2
    return np.asarray(np.log(spectrum @ _mel_bands().T + 1e6), np.float32)


@lru_cache(maxsize=1)
def _mel_bands() -> np.ndarray:
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (200, 3300))
    edges = 700 * (10 ** (np.linspace(low, high, _BANDS + 2) / 2595) - 1)
    hz = np.fft.rfftfreq(_FRAME, 1 / RATE)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.clip(np.minimum(rising, falling), 0, None), np.float32)
