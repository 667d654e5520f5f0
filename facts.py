"""Facts in what callers say, by wording alone: found, compared and ranked without a model."""

from __future__ import annotations

import re
from collections.abc import Iterable

_EMPTY = set(
    "a an the this that these those i i'm i've me my mine we we're we've our us you your he she "  # noqa: SIM905
    "they it its is am are was were be been has have had do does did to of in on at for and or "
    "with please caller caller's customer customer's user user's what about".split()
)
_NEGATIONS = {"not", "no", "never", "don't", "doesn't", "isn't", "can't", "without"}
_LEAD_IN = re.compile(
    r"(?i)\A(?:(?:(?:just so )?you know|by the way|oh|um+|uh+|erm?|well|so|yes|yeah|hi|hello|hey|"
    r"okay|ok|and|but|also|actually|look|listen|for the record|(?:please )?(?:note|remember))\b"
    r"(?: that\b)?[\s,:.!-]*)+"
)
_ABOUT_ME = re.compile(
    r"(?i)my\b.*\b(?:is|are|was|has|have)\b|(?:i am|i'm|we are|we're|i've|we've)\b|"
    r"(?:i|we)(?: have|(?: \w+)? (?:live|work|prefer|use|own))\b"
)
_REQUEST = re.compile(
    r"(?i)(?:i|we)(?:'m| am|'re| are|'d| would|'ve| have)?(?: been)?(?: just| really| also| not)? "
    r"(?:want|need|like|call|look|try|wonder|wait|having|hop|ring|phon|ask|going|sorry|afraid|fine|"
    r"good|ok|sure|here|done|have to|(?:have )?(?:a|one|another) (?:question|problem)|had)\w*\b"
)
_SECRET = re.compile(
    r"(?i)\b(?:card|cvv|cvc|pin|password|passcode|security code)\b|(?:\d[ -]?){13}"
)


def statements(words: Iterable[str]) -> list[str]:
    """What a caller said about themselves that lasts: no questions, requests or secrets."""
    found = []
    for said in words:
        for sentence in re.split(r"(?<=[.!?])\s+", said.replace("\u2019", "'").strip()):
            told = _LEAD_IN.sub("", sentence)
            left_out = told.endswith("?") or _REQUEST.match(told) or _SECRET.search(told)
            if _ABOUT_ME.match(told) and not left_out:
                found.append(told[0].upper() + told[1:])
    return found


def telling_words(said: str) -> list[str]:
    """The words that tell something, in lower case and without a plural's s."""
    words = re.findall(r"[\w']+", said.lower().replace("\u2019", "'"))
    telling = [word for word in words if word not in _EMPTY]
    return [word[:-1] if len(word) > 3 and word.endswith("s") else word for word in telling]


def repeats(one: str, other: str) -> bool:
    """Whether one says no more than the other, whoever says it of whom."""
    a, b = set(telling_words(one)), set(telling_words(other))
    return bool(a and b) and (a <= b or b <= a) and a & _NEGATIONS == b & _NEGATIONS


def by_overlap(facts: list[str], topic: str) -> list[str]:
    """Facts, those that share most words with the topic first."""
    wanted = set(telling_words(topic))
    return sorted(facts, key=lambda fact: -len(wanted & set(telling_words(fact))))
