"""What is measured in a recording is what was put into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.ear import Ear
from simulator.handset import SAMPLE_RATE
from simulator.recording import (
    Recording,
    cuts,
    heard_ratio,
    heard_words,
    level_db,
    missing_ms,
    overlap_ms,
    reply_ms,
)
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


def test_replies_and_overlaps_are_measured() -> None:
    recording = call(own=[(2, 3), (5, 6), (6.6, 7)], heard=[(0, 1), (3.7, 5.2), (7.25, 8)])

    assert reply_ms(recording) == [pytest.approx(700, abs=11), None, pytest.approx(250, abs=11)]
    assert overlap_ms(recording) == pytest.approx(200, abs=21)


def test_an_utterance_talked_over_or_unanswered_has_no_reply_time() -> None:
    recording = call(own=[(1, 2), (4, 5)], heard=[(1.5, 2.5)])

    assert reply_ms(recording) == [None, None]


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

    assert not cuts(smooth)
    assert [found.edge for found in cuts(cut)] == ["end"]


SPOKEN = {text: synthesize(text, voice="agent") for text in ("Kettle? Toaster? Pot?", "Goodbye.")}


def test_words_are_heard_over_pauses_and_in_order() -> None:
    ear = Ear()
    for text, pcm in SPOKEN.items():
        ear.learn(text, pcm)
    said = telephone_line(np.concatenate([x for p in SPOKEN.values() for x in (p, silence(0.3))]))
    first = said[: round(0.7 * len(SPOKEN["Kettle? Toaster? Pot?"]))]

    assert [part.text for part in heard_words(said, ear)] == list(SPOKEN)
    assert heard_ratio(list(SPOKEN), said, ear) > 0.9
    assert [part.text for part in heard_words(first, ear)] == ["Kettle? Toaster?"]
    assert 0.3 < heard_ratio(["Kettle? Toaster? Pot?"], first, ear) < 0.8
    assert heard_ratio(["Something else."], said, ear) == 0
    assert heard_ratio([], said, ear) == 1


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
