"""Texts become speech that sounds the same each time, and the ear knows it again."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from simulator import speech
from simulator.ear import Ear
from simulator.speech import RATE, silence, synthesize, telephone_line

SENTENCES = [
    "Where is my order?",
    "No.",
    "Goodbye.",
    "Hello?",
    "I would like to talk to a person, please.",
    "What time do you open on Sundays?",
    "What time do you close on Mondays?",
    "Can I return a kettle without a receipt?",
]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    speech._spoken.cache_clear()
    return tmp_path / "customer-support-agent" / "speech"


@pytest.fixture(scope="module")
def ear() -> Ear:
    ear = Ear()
    for text in SENTENCES:
        ear.learn(text, synthesize(text))
    return ear


def over_the_line(pcm: np.ndarray, *, gain: float = 0.5, noise: float = 20.0) -> np.ndarray:
    """As a phone's words arrive: late, quieter, narrow-band, on a hissing line."""
    late = np.concatenate([silence(0.17), pcm])
    hiss = np.random.default_rng(1).normal(0, noise, len(late))
    return np.asarray(telephone_line(late) * gain + hiss, np.int16)


def level_db(pcm: np.ndarray) -> float:
    active = pcm[np.abs(pcm) > 300].astype(np.float64)
    return float(20 * np.log10(np.sqrt((active**2).mean()) / 32768))


def test_a_text_sounds_the_same_on_every_machine(empty_cache: Path) -> None:
    first = synthesize("Where is my order?")
    for file in empty_cache.iterdir():
        file.unlink()
    speech._spoken.cache_clear()
    again = synthesize("Where is my order?")

    assert np.array_equal(first, again)


def test_speech_comes_from_the_cache_the_second_time(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = synthesize("Where is my order?")
    speech._spoken.cache_clear()
    monkeypatch.setattr(speech, "_piper", None)

    assert np.array_equal(synthesize("Where is my order?"), first)


def test_a_broken_cache_file_is_made_again(empty_cache: Path) -> None:
    first = synthesize("No.")
    (file,) = empty_cache.iterdir()
    file.write_bytes(b"")
    speech._spoken.cache_clear()

    assert np.array_equal(synthesize("No."), first)


def test_threads_may_speak_at_once(empty_cache: Path) -> None:
    texts = ["Yes.", "No.", "Goodbye."] * 4
    with ThreadPoolExecutor(8) as pool:
        spoken = list(pool.map(synthesize, texts))

    assert all(np.array_equal(spoken[i], spoken[i % 3]) for i in range(len(texts)))
    assert len(list(empty_cache.iterdir())) == 3


def test_a_voice_that_died_is_started_again(empty_cache: Path) -> None:
    speech.load()
    assert isinstance(speech._tool, subprocess.Popen)
    speech._tool.kill()
    speech._tool.wait()

    assert len(synthesize("Yes.")) > 0.2 * RATE


def test_a_pause_mark_is_a_pause_of_that_length() -> None:
    pieces = speech.parts("My name is [0.8] Anna Smith.")
    whole = synthesize("My name is [0.8] Anna Smith.")
    spoken = sum(len(synthesize(piece)) for piece, _ in pieces)
    first = len(synthesize("My name is"))

    assert pieces == [("My name is", 0.8), ("Anna Smith.", 0.0)]
    assert len(whole) - spoken == round(0.8 * RATE)
    assert not whole[first : first + round(0.8 * RATE)].any()


def test_an_unfinished_piece_sounds_unlike_a_finished_one() -> None:
    assert not np.array_equal(synthesize("I have a question"), synthesize("I have a question."))


@pytest.mark.parametrize("text", ["", " ", "[0.3]", "..."])
def test_a_text_without_words_is_no_error(text: str) -> None:
    assert len(synthesize(text)) < 0.5 * RATE


@pytest.mark.parametrize("voice", speech.VOICES)
def test_every_voice_is_trimmed_and_at_the_same_level(voice: str) -> None:
    pcm = synthesize("What time do you open on Sundays?", voice=voice)
    edge = RATE // 20

    assert level_db(pcm) == pytest.approx(speech.LEVEL_DB, abs=1.0)
    assert np.abs(pcm[:edge]).max() > 200
    assert np.abs(pcm[-edge:]).max() > 200


def test_voices_differ() -> None:
    lengths = {len(synthesize("Where is my order?", voice=voice)) for voice in speech.VOICES}

    assert len(lengths) == len(speech.VOICES)


def test_a_telephone_line_passes_speech_and_stops_what_lies_beside_it() -> None:
    def passed(hz: float) -> float:
        tone = speech.beep(0.5, hz)
        return float(np.std(telephone_line(tone)) / np.std(tone))

    assert passed(1000) == pytest.approx(1, abs=0.05)
    assert max(passed(100), passed(5000)) < 0.1
    assert len(telephone_line(silence(0.5))) == RATE // 2


def test_another_rate_is_the_same_speech() -> None:
    at_8k = synthesize("Goodbye.", sample_rate=8000)

    assert len(at_8k) == pytest.approx(len(synthesize("Goodbye.")) / 2, abs=2)


@pytest.mark.parametrize("text", SENTENCES)
def test_the_ear_knows_a_sentence_over_a_telephone_line(ear: Ear, text: str) -> None:
    heard = ear.hear(over_the_line(synthesize(text)), whole=True)

    assert heard.text == text
    assert heard.cover > 0.9


@pytest.mark.parametrize("gain", [0.1, 1.5])
def test_the_ear_minds_no_loudness(ear: Ear, gain: float) -> None:
    quiet_line = over_the_line(synthesize(SENTENCES[4]), gain=gain, noise=2)

    assert ear.hear(quiet_line, whole=True).text == SENTENCES[4]


def test_the_ear_knows_nothing_it_was_not_told(ear: Ear) -> None:
    stranger = synthesize("The quick brown fox jumps over a lazy dog.", voice="recording")
    noise = np.random.default_rng(2).normal(0, 2000, RATE).astype(np.int16)

    assert ear.hear(over_the_line(stranger), whole=True).text is None
    assert ear.hear(noise, whole=True).text is None
    assert ear.hear(silence(0.5)).text is None
    assert Ear().hear(stranger).text is None


def test_of_a_sentence_that_was_cut_off_only_the_words_spoken_are_heard(ear: Ear) -> None:
    pcm = synthesize(SENTENCES[4])
    heard = ear.hear(over_the_line(pcm[: len(pcm) // 2]))

    assert heard.text and SENTENCES[4].startswith(heard.text)
    assert 3 <= len(heard.text.split()) <= 6
    assert heard.cover == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("hole_ms", [60, 120, 200])
@pytest.mark.parametrize("share", [0.35, 0.6])
def test_a_sentence_with_a_hole_in_it_is_known_in_a_recording(
    ear: Ear, hole_ms: int, share: float
) -> None:
    pcm = over_the_line(synthesize(SENTENCES[4]))
    at = int(share * len(pcm))
    recording = np.concatenate(
        [silence(1), pcm[:at], silence(hole_ms / 1000), pcm[at:], silence(1)]
    )

    assert [found.text for found in ear.transcribe(recording)] == [SENTENCES[4]]


def test_a_beginning_before_a_pause_is_not_taken_for_a_short_utterance() -> None:
    ear, text = Ear(), "By the way, I have a three legged cat called Biscuit."
    for known in (text, "costs,", "By the one,", "Goodbye."):
        ear.learn(known, synthesize(known))
    pcm = synthesize(text)

    for share in (0.22, 0.24, 0.3):
        heard = ear.hear(over_the_line(pcm[: round(len(pcm) * share)]), whole=True)
        assert heard.text and text.startswith(heard.text)


def test_what_was_announced_lately_is_likelier() -> None:
    ear, pcm = Ear(), synthesize("Goodbye.")
    for text in ("then", "now"):
        ear.learn(text, np.roll(pcm, len(text)))
    for key in ear._learned:
        ear._learned[key] -= 60 if key[0] == "then" else 0
    heard = ear.hear(over_the_line(np.roll(pcm, len("then"))), whole=True)

    assert heard.text == "now"


@pytest.mark.parametrize("text", ["What if it breaks?", "How much is that for two tickets?"])
def test_a_last_sound_that_the_line_swallows_costs_no_word(text: str) -> None:
    ear = Ear()
    ear.learn(text, synthesize(text))
    pcm = telephone_line(synthesize(text))
    blocks = pcm[: len(pcm) // 160 * 160].reshape(-1, 160).astype(np.float64)
    loud = np.flatnonzero(np.sqrt((blocks**2).mean(axis=1)) > 150)
    heard = ear.hear(pcm[: (loud[-1] + 1) * 160], whole=True)

    assert heard.text == text


def test_learning_again_changes_nothing_and_voices_are_told_apart() -> None:
    ear = Ear()
    for voice in ("caller", "callee", "caller"):
        ear.learn("Where is my order?", synthesize("Where is my order?", voice=voice))

    assert len(ear._known) == 2


def test_an_ear_with_hundreds_of_templates_stays_fast() -> None:
    ear = Ear()
    for number, text in enumerate(SENTENCES * 40):
        ear.learn(f"{number} {text}", np.roll(synthesize(text), 37 * number))
    pcm = synthesize(SENTENCES[4])
    ear.hear(pcm)
    took = []
    for _ in range(5):
        started = time.perf_counter()
        ear.hear(pcm)
        took.append(time.perf_counter() - started)

    assert min(took) < 0.03
