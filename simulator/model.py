"""The stand-in language model: general rules over what a model is sent, no topic among them.

It calls tools, reads out the sentence of a passage that fits a question best, and quotes what is
known of the caller. Everything it says of anybody or anything is in the request.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import Stemmer  # type: ignore[import-not-found]

PASSAGES = "Passages from our knowledge base"
NOTHING = "Our knowledge base has nothing"
KNOWN = "What we know about this caller:"

_stemmer = Stemmer.Stemmer("english")
_COMMON = frozenset(
    """a an the and or but of to in on at for from with by is are was were be been am do does did
    can could will would shall should may might must have has had i you he she it we they me my
    your our their his her its this that these those there here what which who whom whose when
    where why how if so as not no yes please just about any some much many long get got know tell
    remember recall told said say called""".split()  # noqa: SIM905 a list would fill a page
)
_QUESTION = re.compile(
    r"\?\s*$|^(what|when|where|who|why|how|which|do|does|did|is|are|can|could|may|will|would)\b",
    re.IGNORECASE,
)
_STATEMENT = re.compile(
    r"\b(my \w+(\s\w+)? (is|are|was)|i am|i'm|i have|i've|i live|i work|i prefer|we have)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request to the model, as far as the rules look at it."""

    words: str
    """The caller's last words."""
    system: list[str]
    """The system messages, latest first."""
    tools: dict[str, Any]
    """Parameters (JSON schema) by tool name."""
    is_first: bool = False
    """Whether the agent has yet to say something."""

    def lines(self, heading: str) -> list[str]:
        """The lines below the latest system text with that heading."""
        for text in self.system:
            if heading in text:
                return text.split(heading, 1)[1].splitlines()[1:]
        return []


Rule = Callable[[Asked], "str | ToolCall | None"]


def reply(body: dict[str, Any]) -> str | ToolCall:
    """What the model answers to an OpenAI chat completion request."""
    messages = body["messages"]
    last = next(m for m in reversed(messages) if m["role"] not in ("system", "developer"))
    words = next((_text(m) for m in reversed(messages) if m["role"] == "user"), "")
    system = [_text(m) for m in reversed(messages) if m["role"] in ("system", "developer")]
    tools = {
        tool["function"]["name"]: tool["function"].get("parameters", {})
        for tool in body.get("tools") or []
    }
    is_first = not any(m["role"] == "assistant" for m in messages)
    asked = Asked(words, system, tools if body.get("tool_choice") != "none" else {}, is_first)
    if last["role"] == "tool":
        return _of_tool(_text(last), asked)
    return next(answer for rule in RULES if (answer := rule(asked)))


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = " ".join(part.get("text", "") for part in content)
    return str(content)


def _of_tool(result: str, asked: Asked) -> str:
    """Say a tool's result: the part before the instruction to the model."""
    if result.startswith(PASSAGES):
        return _best_sentences(asked.words, _passages(result.splitlines()[1:])) or UNKNOWN
    if result.startswith(NOTHING):
        return UNKNOWN
    if result.startswith(KNOWN):
        return _quote(_best(asked.words, _facts(result.splitlines()[1:])))
    fact = re.split(r" \| | - ", result)[0].strip().rstrip(".")
    return f"{fact}."


UNKNOWN = "I'm sorry, I don't know that. Would you like me to put you through to a person?"


def _opening(asked: Asked) -> str | ToolCall | None:
    """The first words of a call that we placed, to whoever answers it."""
    greets = r"^\W*(hello|hi|hey|yes|speaking|this is|good (morning|afternoon|evening))\b"
    if asked.is_first and re.search(greets, asked.words, re.IGNORECASE):
        lines = (line for text in asked.system for line in text.splitlines())
        return next((line[9:].strip() for line in lines if line.startswith("Opening: ")), None)
    return None


def _goodbye(asked: Asked) -> str | ToolCall | None:
    ends = r"\b(good ?bye|bye|that's all|that is all|hang up|(stop|don't) call|not interested)"
    if re.search(ends, asked.words, re.IGNORECASE):
        return _use(asked, "end_call") or "Goodbye."
    return None


def _machine(asked: Asked) -> str | ToolCall | None:
    recorded = r"leave (a|your) |after the (tone|beep)|you('ve| have) reached|voice ?mail|mailbox"
    absent = r"can('t|not) come to the phone|\b(not available|unavailable)\b"
    is_recorded = re.search(recorded, asked.words, re.IGNORECASE)
    if is_recorded or (asked.is_first and re.search(absent, asked.words, re.IGNORECASE)):
        return _use(asked, "detected_answering_machine")
    return None


def _forget(asked: Asked) -> str | ToolCall | None:
    if re.search(r"\b(forget|delete|erase)\b.*\b(me|my|about me)\b", asked.words, re.IGNORECASE):
        return _use(asked, "forget_me")
    return None


def _remember(asked: Asked) -> str | ToolCall | None:
    found = re.search(r"\b(?<!you )remember that (.+)", asked.words, re.IGNORECASE)
    return _use(asked, "remember", fact=found[1].strip()) if found else None


def _person(asked: Asked) -> str | ToolCall | None:
    wish = r"\b(person|human|somebody|someone|representative|put me through|transfer|agent)\b"
    is_nature = re.search(r"\bare you\b", asked.words, re.IGNORECASE)
    if is_nature or not re.search(wish, asked.words, re.IGNORECASE):
        return None
    schema = asked.tools.get("transfer_call", {}).get("properties", {})
    names = schema.get("destination", {}).get("enum") or ["person"]
    named = [name for name in names if name.lower() in asked.words.lower()]
    reason = "The caller asked for it."
    return _use(asked, "transfer_call", destination=(named or names)[0], reason=reason)


def _nature(asked: Asked) -> str | ToolCall | None:
    asks = r"\bare you (an? )?(\w+ )?(robot|human|machine|ai|computer|person|real)\b"
    return "I am an AI assistant." if re.search(asks, asked.words, re.IGNORECASE) else None


def _about_caller(asked: Asked) -> str | ToolCall | None:
    asks = r"\b(remember|recall|told you|know about me)\b"
    facts = _facts(asked.lines(KNOWN))
    if not re.search(asks, asked.words, re.IGNORECASE):
        return _own(asked, facts)
    if best := _best(asked.words, facts):
        return _quote(best)
    return _use(asked, "recall_caller", topic=asked.words) or "I'm sorry, I don't remember that."


def _own(asked: Asked, facts: list[str]) -> str | None:
    """A question with `my` or `I` in it, if a fact of theirs fits it better than any passage."""
    if not (_QUESTION.search(asked.words) and re.search(r"\b(my|I)\b", asked.words)):
        return None
    wanted, fact = stems(asked.words), _best(asked.words, facts)
    sentence = _best(asked.words, _sentences(_passages(asked.lines(PASSAGES))))
    if len(wanted & stems(fact)) > len(wanted & stems(sentence)):
        return _quote(fact)
    return None


def _question(asked: Asked) -> str | ToolCall | None:
    if not _QUESTION.search(asked.words):
        return None
    latest = next((t for t in asked.system if PASSAGES in t or NOTHING in t), "")
    if latest.startswith(PASSAGES):
        passages = _passages(latest.splitlines()[1:])
        return _best_sentences(asked.words, passages) or UNKNOWN
    return UNKNOWN


def _statement(asked: Asked) -> str | ToolCall | None:
    return "Thank you, that is good to know." if _STATEMENT.search(asked.words) else None


def _courtesy(asked: Asked) -> str | ToolCall | None:
    short = re.search(r"\b(thanks?|thank you|yes|no|okay|ok|fine)\b", asked.words, re.IGNORECASE)
    return "You're welcome. Is there anything else?" if short else None


def _anything(asked: Asked) -> str | ToolCall | None:
    return "I see. What can I do for you?"


RULES: list[Rule] = [
    _machine,
    _opening,
    _goodbye,
    _forget,
    _remember,
    _nature,
    _person,
    _about_caller,
    _question,
    _statement,
    _courtesy,
    _anything,
]


def _use(asked: Asked, tool: str, **arguments: str) -> ToolCall | None:
    return ToolCall(tool, arguments) if tool in asked.tools else None


def _facts(lines: Iterable[str]) -> list[str]:
    listed = itertools.takewhile(lambda line: line.startswith("- "), lines)
    return [line[2:].strip() for line in listed]


def _passages(lines: Iterable[str]) -> list[str]:
    return [re.sub(r"^\[[^\]]*\]\s*", "", line) for line in lines if line.startswith("[")]


def _quote(fact: str) -> str:
    return f"You told me: {fact.rstrip('.')}." if fact else "I'm sorry, I don't remember that."


def stems(text: str) -> set[str]:
    """The stems of a text's telling words."""
    words = re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))
    return set(_stemmer.stemWords([word for word in words if word not in _COMMON]))


def _best(question: str, candidates: list[str]) -> str:
    """The candidate that shares most telling words with the question; "" if none shares any."""
    wanted = stems(question)
    scored = [(len(wanted & stems(text)), -index, text) for index, text in enumerate(candidates)]
    best = max(scored, default=(0, 0, ""))
    return best[2] if best[0] else ""


def _best_sentences(question: str, passages: list[str]) -> str:
    """The one sentence of the passages that answers best; among equals of the best passage."""
    sentences = _sentences(passages)
    return _best(question, sentences) or (sentences[0] if sentences else "")


def _sentences(passages: list[str]) -> list[str]:
    return [
        sentence.strip()
        for passage in passages
        for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"[#*_`]", "", passage))
        if len(sentence.split()) > 2
    ]
