import pytest

import prompts


@pytest.mark.parametrize(
    "words",
    [
        "Hello, you've reached Sam.",
        "I can't come to the phone right now.",
        "Please leave your number.",
        "The person you called is not available.",
    ],
)
def test_people_who_were_spoken_to_may_say_what_machines_begin_with(words: str) -> None:
    assert prompts.sounds_recorded(words, is_reply=False)
    assert not prompts.sounds_recorded(words, is_reply=True)


@pytest.mark.parametrize("words", ["Please leave a message after the tone.", "Sam's mailbox"])
def test_what_only_machines_say_tells_them_at_any_time(words: str) -> None:
    assert prompts.sounds_recorded(words, is_reply=True)


@pytest.mark.parametrize("words", ["Please leave me alone.", "Hello?", "Not now, thank you."])
def test_a_person_does_not_sound_recorded(words: str) -> None:
    assert not prompts.sounds_recorded(words, is_reply=False)


@pytest.mark.parametrize(
    "words", ["I would like to", "I have.", "My order number is", "Hello,", "And then it was"]
)
def test_words_that_break_off_are_unfinished(words: str) -> None:
    assert prompts.sounds_unfinished(words)


@pytest.mark.parametrize(
    "words",
    ["This is she.", "Yes, I am.", "Yes, please.", "No, thank you", "I don't know.", "Who?"],
)
def test_short_answers_are_finished_whatever_their_last_word(words: str) -> None:
    assert not prompts.sounds_unfinished(words)
