"""What a phone sends and hears is placed on its clock, whatever the scheduler does."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from simulator.handset import FRAME, SAMPLE_RATE, Earpiece, LineQuality, Mouth, levels
from tests.phones import tone

HAMMING = np.hamming(65) / np.hamming(65).sum()


def smooth(pcm: np.ndarray) -> np.ndarray:
    return np.convolve(pcm.astype(np.float64), HAMMING, "same").astype(np.int16)


def hear(ear: Earpiece, pcm: np.ndarray, source: str, at_s: float, late_s: float = 0.0) -> None:
    """`pcm` of a track that began at `at_s`, in 20 ms pieces, each `late_s` late."""
    for start in range(0, len(pcm), FRAME):
        piece = pcm[start : start + FRAME]
        ear.hear(source, piece, at_s + (start + len(piece)) / SAMPLE_RATE + late_s)


def test_a_stream_passes_the_line_as_the_whole_would() -> None:
    pcm = np.random.default_rng(1).normal(0, 3000, SAMPLE_RATE).astype(np.int16)
    ear = Earpiece(0.0, smooth)
    hear(ear, pcm, "agent", 0.0)
    ear.flush()

    assert np.array_equal(ear.tape.read(0, len(pcm)), smooth(pcm))


def test_two_tracks_are_heard_as_one_and_sound_is_timed() -> None:
    ear = Earpiece(100.0, None)
    first, second = tone(0.4, 600), tone(0.4, 1500)
    silence = np.zeros(SAMPLE_RATE, np.int16)
    for start in range(0, SAMPLE_RATE, FRAME):
        end = 100.5 + (start + FRAME) / SAMPLE_RATE
        for source, sound in (("voice", first), ("music", second)):
            whole = np.concatenate([silence[: FRAME * 10], sound, silence])
            ear.hear(source, whole[start : start + FRAME], end)
    mixed = ear.tape.read(round(0.7 * SAMPLE_RATE), round(1.1 * SAMPLE_RATE))

    assert np.array_equal(mixed, first + second)
    assert ear.first_sound(0.0) == pytest.approx(100.7, abs=0.011)
    assert ear.last_sound() == pytest.approx(101.1, abs=0.011)
    assert ear.first_sound(101.2) is None


def test_a_busy_moment_moves_nothing() -> None:
    ear = Earpiece(0.0, None)
    pcm = tone(2.0)
    hear(ear, pcm[: SAMPLE_RATE // 2], "agent", 0.0)
    for start in range(SAMPLE_RATE // 2, len(pcm), FRAME):
        on_time = (start + FRAME) / SAMPLE_RATE
        ear.hear("agent", pcm[start : start + FRAME], max(on_time, 0.9))

    assert np.array_equal(ear.tape.read(0, len(pcm)), pcm)


def test_a_late_first_frame_is_put_right_before_anyone_speaks() -> None:
    ear = Earpiece(0.0, None)
    quiet = np.zeros(SAMPLE_RATE // 5, np.int16)
    ear.hear("agent", quiet[:FRAME], 0.15)
    hear(ear, np.concatenate([quiet, tone(0.3)]), "agent", 0.02)

    assert ear.first_sound(0.0) == pytest.approx(0.22, abs=0.011)


def test_sound_that_stays_late_was_lost_before() -> None:
    ear = Earpiece(0.0, None)
    hear(ear, np.zeros(SAMPLE_RATE, np.int16), "agent", 0.0)
    hear(ear, np.zeros(SAMPLE_RATE, np.int16), "agent", 1.5)
    hear(ear, tone(0.3), "agent", 2.5)

    assert ear.first_sound(0.0) == pytest.approx(2.5, abs=0.011)


def test_a_click_is_not_speech() -> None:
    ear = Earpiece(0.0, None)
    silence = np.zeros(3200, np.int16)
    hear(ear, np.concatenate([silence, tone(0.02), silence]), "agent", 0.0)

    assert not ear.loud


async def test_what_is_said_is_sent_in_order_and_placed() -> None:
    mouth = Mouth(LineQuality(noise=0), seed=1)
    saying = [asyncio.create_task(mouth.say(tone(0.05, hz))) for hz in (600, 900)]
    await asyncio.sleep(0)
    sent = [mouth.frame(n * FRAME) for n in range(10)]

    assert [await task for task in saying] == [(0, 800), (800, 1600)]
    words = np.concatenate([tone(0.05, 600), tone(0.05, 900)])
    assert np.array_equal(np.concatenate(sent)[:1600], words)
    assert np.array_equal(mouth.tape.read(0, 3200), np.concatenate(sent))
    assert not np.any(sent[-1])


async def test_falling_silent_drops_the_rest() -> None:
    mouth = Mouth(LineQuality(noise=0), seed=1)
    saying = asyncio.create_task(mouth.say(tone(1.0)))
    await asyncio.sleep(0)
    mouth.frame(0)
    saying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saying

    assert not np.any(mouth.frame(FRAME))


async def test_loss_and_jitter_lose_packets_and_noise_is_never_on_the_tape() -> None:
    shares = {}
    for name, quality in {
        "loss": LineQuality(loss=0.2, noise=0),
        "jitter": LineQuality(jitter_ms=60, noise=0),
        "noise": LineQuality(noise=200),
    }.items():
        mouth = Mouth(quality, seed=1)
        saying = asyncio.create_task(mouth.say(tone(4.0)))
        await asyncio.sleep(0)
        sent = np.concatenate([mouth.frame(n * FRAME) for n in range(200)])
        await saying
        changed = np.abs(mouth.tape.read(0, len(sent)).astype(int) - tone(4.0)) > 100
        shares[name] = float(np.mean(changed.reshape(200, FRAME).any(axis=1)))
        is_noisy = levels(sent - mouth.tape.read(0, len(sent))).max() > 50
        assert is_noisy == (name == "noise")

    assert shares == {
        "loss": pytest.approx(0.2, abs=0.1),
        "jitter": pytest.approx(0.16, abs=0.1),
        "noise": 0.0,
    }
