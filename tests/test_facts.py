"""Facts are found in what callers say, without a model."""

from __future__ import annotations

import pytest

from facts import repeats, statements


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("By the way, my name is Anna.", ["My name is Anna."]),
        ("Oh, and I'm allergic to wool!", ["I'm allergic to wool!"]),
        ("I prefer the morning. Thanks.", ["I prefer the morning."]),
        ("Yes, we have two dogs", ["We have two dogs"]),
        ("I work nights", ["I work nights"]),
        ("I\u2019m a nurse", ["I'm a nurse"]),
        ("Is my order late? My word is that so?", []),
        ("I'm calling about my lamp. I want a refund. I would like to know more.", []),
        ("I'm looking for a lamp. I need help. I have a question about my order.", []),
        ("My card number is 4242 4242 4242 4242.", []),
        ("The lamp is broken.", []),
    ],
)
def test_statements_about_oneself(said: str, kept: list[str]) -> None:
    assert statements([said]) == kept


def test_what_repeats_what() -> None:
    assert repeats("My order number is 4471.", "The caller's order number is 4471")
    assert repeats("I live in Leeds", "I live in Leeds, near the station")
    assert not repeats("I'm vegan", "I'm not vegan")
    assert not repeats("My number is 1", "My number is 2")
