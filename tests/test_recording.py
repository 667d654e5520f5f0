"""What is measured in a recording is what was put into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.ear import Ear
from simulator.handset import SAMPLE_RATE
from simulator.recording import (
    Recording,
    cut_ends,
    level_db,
    missing_ms,
    overlap_ms,
)
from simulator.rehearsal import heard_share
from simulator.speech import silence, synthesize, telephone_line
from tests.phones import tone


def call(own: list[tuple[float, float]], heard: list[tuple[float, float]]) -> Recording:
    """A recording with tones at those seconds."""
    channels = np.zeros((2, 10 * SAMPLE_RATE), np.int16)
    for channel, spans in zip(channels, (own, heard), strict=True):
        for start, end in spans:
            piece = tone(end - start)
            channel[round(start * SAMPLE_RATE) :][: len(piece)] = piece
    return Recording(channels[0], channels[1])


def test_what_both_say_at_once_is_measured() -> None:
    recording = call(own=[(2, 3), (5, 6), (6.6, 7)], heard=[(0, 1), (3.7, 5.2), (7.25, 8)])

    assert overlap_ms(recording) == pytest.approx(200, abs=21)


def test_levels_are_of_speech_only() -> None:
    recording = call(own=[], heard=[(1, 2)])

    assert level_db(recording.heard) == pytest.approx(20 * np.log10(8000 / 2**0.5 / 32768), abs=0.2)
    assert level_db(recording.own) is None


def test_an_abrupt_end_is_a_cut_and_a_fading_one_is_not() -> None:
    faded = tone(1.0)
    fade = np.concatenate([np.linspace(0, 1, 1600), np.ones(12_800), np.linspace(1, 0, 1600)])
    silence = np.zeros(8000, np.int16)
    smooth = np.concatenate([silence, (faded * fade).astype(np.int16), silence])
    cut = np.concatenate([silence, (faded * fade).astype(np.int16)[:12_000], silence])

    assert not cut_ends(smooth)
    assert [round(found.end_s, 2) for found in cut_ends(cut)] == [1.25]


SPOKEN = {text: synthesize(text, voice="agent") for text in ("Kettle? Toaster? Pot?", "Goodbye.")}


def test_the_share_of_words_that_came_through() -> None:
    ear = Ear()
    for text, pcm in SPOKEN.items():
        ear.learn(text, pcm)
    said = telephone_line(np.concatenate([x for p in SPOKEN.values() for x in (p, silence(0.3))]))
    gap = said.copy()
    gap[: len(SPOKEN["Kettle? Toaster? Pot?"]) // 4] = 0

    assert heard_share(list(SPOKEN), said, ear) > 0.95
    assert 0.5 < heard_share(list(SPOKEN), gap, ear) < 0.9
    assert heard_share(["Goodbye.", "Something else."], said, ear) == pytest.approx(1 / 3, abs=0.05)
    assert heard_share([], said, ear) == 1


def test_what_is_missing_of_a_sentence_is_measured() -> None:
    text = "Standard delivery costs four pounds ninety-five."
    spoken = synthesize(text, voice="agent")

    def missing(start_s: float, end_s: float) -> tuple[float, float]:
        part = spoken[round(start_s * SAMPLE_RATE) : len(spoken) - round(end_s * SAMPLE_RATE)]
        heard = telephone_line(np.concatenate([silence(0.2), part, silence(0.2)]))
        return missing_ms(heard, spoken)

    assert missing(0, 0) == pytest.approx((0, 0), abs=50)
    assert missing(0.2, 0) == pytest.approx((200, 0), abs=60)
    assert missing(0, 0.5) == pytest.approx((0, 500), abs=60)


def test_a_recording_is_saved_in_stereo(tmp_path: Path) -> None:
    recording = call(own=[(1, 2)], heard=[(3, 4)])
    loaded = Recording.load(recording.save(tmp_path / "call.wav"))

    assert np.array_equal(loaded.own, recording.own)
    assert np.array_equal(loaded.heard, recording.heard)
