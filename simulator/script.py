"""A scripted call: a short readable file of who calls, what is said when, what must be true."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SCRIPTS = Path(__file__).parent / "scripts"
STEPS = {"say", "interrupt", "hear", "mailbox", "hang_up", "transferred", "ended", "press"}
KEYS = {"from", "to", "voice", "after", "dispatch", "line", "steps", "expect", "transfer"}

GREETINGS = [
    "Hello, you've reached {name}. [{p}] I can't come to the phone right now. [{p}] "
    "Please leave a message after the tone.",
    "Hi, you've reached {name}. [{p}] I'm not available at the moment, so please leave your name "
    "and number after the beep. [{p}] Thank you.",
    "You have reached the mailbox of {name}. [{p}] Please leave a message.",
]


class BadScript(Exception):
    """A script can't be played; the message names the file and what is wrong in it."""


@dataclass(frozen=True)
class Step:
    """One thing that happens; `text` is what is said or must be heard ("" = anything)."""

    verb: str
    text: str = ""
    after_s: float = 0.0


@dataclass(frozen=True)
class Script:
    name: str
    number: str
    is_inbound: bool
    voice: str = "caller"
    transfer: str | int = "accept"
    dispatch: dict[str, str] = field(default_factory=dict)
    line: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    expect: dict[str, Any] = field(default_factory=dict)
    remembered: str = ""
    """Words that must be in what is remembered of the caller before this call begins."""

    @classmethod
    def load(cls, path: Path) -> Script:
        """Raises BadScript."""
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, dict) or ("from" in content) == ("to" in content):
            raise BadScript(f"{path.name}: needs either from: (inbound) or to: (outbound)")
        if unknown := content.keys() - KEYS:
            raise BadScript(f"{path.name}: unknown key {sorted(unknown)[0]}")
        return cls(
            name=path.stem.lstrip("0123456789-").replace("-", " "),
            number=content.get("from") or content["to"],
            is_inbound="from" in content,
            voice=content.get("voice", "caller"),
            transfer=content.get("transfer", "accept"),
            dispatch=content.get("dispatch", {}),
            line=content.get("line", {}),
            steps=tuple(_step(path.name, item) for item in content["steps"]),
            expect=content.get("expect", {}),
            remembered=content.get("after", ""),
        )


def _step(file: str, item: str | dict[str, Any]) -> Step:
    if isinstance(item, str):
        item = {item: True}
    verbs = STEPS & item.keys()
    if len(verbs) != 1 or item.keys() - verbs - {"after"}:
        raise BadScript(f"{file}: a step is one of {', '.join(sorted(STEPS))}, not {item}")
    verb = verbs.pop()
    text = "" if item[verb] is True else str(item[verb])
    return Step(verb, text, float(item.get("after", 0)))


@dataclass(frozen=True)
class Mailbox:
    """A recorded greeting with pauses in it, and how long (s) its beep keeps one waiting."""

    greeting: str
    beep_after_s: float

    @classmethod
    def from_seed(cls, seed: int, name: str) -> Mailbox:
        chance = random.Random(seed)
        pause = f"{chance.uniform(0.3, 0.7):.1f}"
        greeting = chance.choice(GREETINGS).format(name=name or "us", p=pause)
        return cls(greeting, chance.uniform(0.3, 4.0))
