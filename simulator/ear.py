"""A recogniser that knows only what was announced to it, and says so when it hears anything else.

It compares log-mel spectra (12 bands from 200 to 3,300 Hz, 40 ms apart) with those of every known
utterance: enough to tell them apart over a telephone line, and nothing like real recognition.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RATE = 16_000
_FRAME, _HOP, _BANDS = 1024, RATE // 25, 12
_SLACK = 8
"""How far (in hops of 40 ms) what is heard may be shifted against what is known."""
_FEWEST = 6
_WORTH_A_LOOK = 0.45
"""Least correlation of a place in a recording that is looked at elastically."""
_LIKELY = 5
"""How many of the best matches are looked at again, elastically."""
_MARGIN = 4
"""Hops around its place in a recording that are looked at elastically."""
_FAINT = 5.5
"""How far (in log energy, 24 dB) below its loudest hop the end of an utterance may go unheard."""
_LATELY_S = 15.0
"""What was announced in this time is likelier to be heard than what was said before."""
_MIDDLE = 17.0
"""A usual log-mel energy; taken off, so that single precision suffices."""


@dataclass(frozen=True)
class Elasticity:
    """Hops that keep together, and by how many the next may be shifted; once, by `jump`."""

    chunk: int
    drift: int
    jump: int


IN_A_SEGMENT = Elasticity(10, 2, 2)
"""What may be only a beginning is like many utterances as it is."""
IN_A_RECORDING = Elasticity(5, 1, 5)


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
        self._learned: dict[tuple[str, int], float] = {}
        """When (monotonic, s) each was last announced."""
        self._stack: _Stack | None = None
        self._lock = threading.Lock()

    def transcribe(self, pcm16k: np.ndarray, min_score: float = 0.8) -> list[Found]:
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
        for found in sorted(candidates, key=lambda f: -f.score - 0.01 * (f.end_s - f.start_s)):
            middle = (found.start_s + found.end_s) / 2
            if not any(c.start_s < middle < c.end_s or _encloses(found, c) for c in chosen):
                chosen.append(found)
        return sorted(chosen, key=lambda f: f.start_s)

    def learn(self, text: str, pcm16k: np.ndarray) -> None:
        """Know an utterance: its words and how it sounds."""
        key = text, hash(pcm16k.tobytes())
        with self._lock:
            self._learned[key] = time.monotonic()
            if key not in self._known:
                self._known[key] = features(pcm16k)
                self._stack = None

    def hear(self, pcm16k: np.ndarray, *, whole: bool = False, min_score: float = 0.6) -> Heard:
        """The known utterance that `pcm16k` is, or begins with; `whole`: it is over.

        Text is None below `min_score`; if only the beginning was heard, so are its words.
        """
        with self._lock:
            if not self._known:
                return Heard(None, 0.0, 0.0)
            stack = self._stack = self._stack or _Stack.of(self._known)
            since = time.monotonic() - _LATELY_S
            lately = np.array([self._learned[key] > since for key in self._known])
        heard = features(pcm16k)
        heard = heard[max(0, _loud_hops(heard)[0] - 1) :]  # silence before it is no part of it
        scores, covers = stack.match(heard)
        for likely in np.argsort(scores)[-_LIKELY:]:
            template = stack.values[likely, : stack.sizes[likely]] + _MIDDLE
            penalty = 0.3 * max(0.0, len(heard) / len(template) - 1.3)
            likeness = elastic(heard, template, IN_A_SEGMENT) - penalty
            scores[likely] = max(scores[likely], likeness)
        unheard = np.maximum(0.0, 0.9 - covers) if whole else np.zeros_like(covers)
        scores = scores - 0.3 * unheard
        # A beginning before a pause ("By the way,") is also a bit like some whole utterance.
        ranks = np.where(scores >= min_score, scores + 0.1 * unheard + 0.1 * lately, scores - 1)
        at = int(np.argmax(ranks))
        best = Heard(stack.texts[at], max(0.0, float(scores[at])), float(covers[at]))
        if not best.score or best.score < min_score:
            return Heard(None, best.score, best.cover)
        return Heard(_shortened(stack.texts[at], best.cover), best.score, best.cover)


def _shortened(text: str, cover: float) -> str:
    if cover >= 0.9:
        return text
    words = text.split()
    return " ".join(words[: max(1, round(len(words) * cover))])


@dataclass(frozen=True)
class _Stack:
    """All templates side by side, about their mean and padded with zeros, with running sums."""

    texts: list[str]
    sizes: np.ndarray
    sounding: np.ndarray
    """Hops until a template is faint: a final `s` may be lost on the line, and its silence cut."""
    values: np.ndarray
    """(templates, hops, bands)"""
    sums: np.ndarray
    """(templates, hops + 1): of all values before a hop; `squares` likewise."""
    squares: np.ndarray

    @classmethod
    def of(cls, known: dict[tuple[str, int], np.ndarray]) -> _Stack:
        sizes = np.array([len(template) for template in known.values()])
        values = np.zeros((len(known), int(sizes.max()), _BANDS), np.float32)
        for row, template in zip(values, known.values(), strict=True):
            row[: len(template)] = template - _MIDDLE
        sounding = np.array([_sounding(template) for template in known.values()])
        return cls([text for text, _ in known], sizes, sounding, values, *_running(values))

    def match(self, heard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per template the best correlation over all shifts, and the share of it that was heard.

        What is heard beyond a template costs it some score, and so does a shift.
        """
        heard = (heard - _MIDDLE).astype(np.float32)
        sums, squares = _running(heard[None])
        scores, covers = np.zeros(len(self.sizes)), np.zeros(len(self.sizes))
        for shift in range(-_SLACK, _SLACK + 1):
            here, there = max(shift, 0), max(-shift, 0)
            sizes = np.minimum(len(heard) - here, self.sizes - there)
            if sizes.max() < _FEWEST:
                continue
            score = self._correlation(heard, (sums[0], squares[0]), (here, there), sizes)
            score -= 0.3 * np.maximum(0.0, len(heard) / self.sizes - 1.15) + 0.002 * abs(shift)
            better = (sizes >= _FEWEST) & (score > scores)
            scores[better] = score[better]
            covers[better] = np.minimum(1.0, sizes / self.sounding)[better]
        return scores, covers

    def _correlation(
        self,
        heard: np.ndarray,
        running: tuple[np.ndarray, np.ndarray],
        starts: tuple[int, int],
        sizes: np.ndarray,
    ) -> np.ndarray:
        here, there = starts
        longest = int(sizes.max())
        sizes = np.maximum(sizes, 1)
        rows, count = np.arange(len(sizes)), sizes * _BANDS
        overlap = self.values[:, there : there + longest].reshape(len(sizes), -1)
        product = (overlap @ heard[here : here + longest].ravel()).astype(np.float64)
        a, aa = (total[here + sizes] - total[here] for total in running)
        ends = np.minimum(there + sizes, self.sums.shape[1] - 1)
        b, bb = (total[rows, ends] - total[:, there] for total in (self.sums, self.squares))
        spread = np.maximum(0.0, (aa - a * a / count) * (bb - b * b / count))
        # Next to nothing, as of pure silence, is rounding: it is like no template.
        spread[spread < 1e-3] = np.inf
        return np.asarray((product - a * b / count) / np.sqrt(spread))


def _sounding(template: np.ndarray) -> int:
    """Hops until the last that is not faint."""
    return int(_loud_hops(template)[-1]) + 1


def _loud_hops(values: np.ndarray) -> np.ndarray:
    energy = np.log(np.exp(values.astype(np.float64)).sum(axis=1))
    return np.flatnonzero(energy > energy.max() - _FAINT)


def _running(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values and of squares before each hop of (templates, hops, bands)."""
    exact = values.astype(np.float64)
    sums, squares = (np.cumsum(v.sum(axis=2), axis=1) for v in (exact, exact**2))
    return np.pad(sums, ((0, 0), (1, 0))), np.pad(squares, ((0, 0), (1, 0)))


def elastic(heard: np.ndarray, template: np.ndarray, give: Elasticity) -> float:
    """How alike (0 to 1) two utterances are if one is stretched or squeezed here and there.

    A jitter buffer does that to speech while the machine is busy: mostly by little, once by more.
    """
    a, b = heard - heard.mean(), template - template.mean()
    shifts = np.arange(-_SLACK - 4, _SLACK + 5)
    # Per shift of the last chunk: product and energies; without a jump so far, and with one.
    total, jumped = np.zeros((2, len(shifts), 3))
    for start in range(0, len(b) - _FEWEST + 1, give.chunk):
        chunk = b[start : start + give.chunk]
        parts = np.zeros((len(shifts), 3))
        for i, shift in enumerate(shifts):
            at = start + shift
            piece = a[max(0, at) : max(0, at + len(chunk))]
            if at >= 0 and len(piece) == len(chunk):
                parts[i] = np.vdot(piece, chunk), np.vdot(piece, piece), np.vdot(chunk, chunk)
        if not parts.any():
            break
        jumping, drifting = _best_near(total, give.jump), _best_near(jumped, give.drift)
        is_better = _likeness(jumping) > _likeness(drifting)
        is_possible = (parts != 0).any(axis=1, keepdims=True)
        jumped = is_possible * (np.where(is_better[:, None], jumping, drifting) + parts)
        total = is_possible * (_best_near(total, give.drift) + parts)
    return float(max(_likeness(total).max(), _likeness(jumped).max()))


def _best_near(total: np.ndarray, reach: int) -> np.ndarray:
    """For each shift, the best total of those that are at most `reach` away."""
    likeness = np.pad(_likeness(total), reach, constant_values=-np.inf)
    nearest = np.lib.stride_tricks.sliding_window_view(likeness, 2 * reach + 1)
    return np.asarray(total[np.arange(len(total)) - reach + nearest.argmax(axis=1)])


def _likeness(total: np.ndarray) -> np.ndarray:
    return np.asarray(total[:, 0] / (np.sqrt(total[:, 1] * total[:, 2]) + 1e-9))


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
    while len(scores) and (best := int(np.argmax(scores))) >= 0 and scores[best] >= _WORTH_A_LOOK:
        there = flat[best].reshape(template.shape)
        start = best * _HOP / 2 / RATE
        end = start + size * _HOP / RATE
        first = best % 2 if best < 2 * _MARGIN else best - 2 * _MARGIN
        around = fine[first : best + 2 * (size + _MARGIN) : 2]
        score = max(float(scores[best]), elastic(around, template, IN_A_RECORDING))
        if score >= min_score:
            found.append(Found(text, start, end, score, _came_through(there, template)))
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
