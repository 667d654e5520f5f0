"""The stand-in model: general rules, and nothing in its replies that was not in the request."""

from __future__ import annotations

import re
from typing import Any

import pytest

from simulator.model import ToolCall, reply

PERSON = {
    "transfer_call": {"properties": {"destination": {"enum": ["billing", "workshop"]}}},
    "end_call": {},
    "detected_answering_machine": {},
    "forget_me": {},
    "remember": {},
    "recall_caller": {},
}
PASSAGES = """Passages from our knowledge base that may answer the caller:
[zoo.md] The zebra house is open from nine to five. Zebras sleep at noon.
[zoo.md] Tickets for otters cost twelve crowns."""
FACTS = "What we know about this caller:\n- I have a parrot named Olu.\n- I live in Bergen."


def answer(user: str, *system: str, before: str = "", tools: Any = PERSON) -> str | ToolCall:
    messages = [{"role": "system", "content": text} for text in system]
    messages += [{"role": "assistant", "content": before}] if before else []
    messages += [{"role": "user", "content": user}]
    functions = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in tools.items()
    ]
    return reply({"messages": messages, "tools": functions})


@pytest.mark.parametrize(
    ("words", "tool", "arguments"),
    [
        ("That's all, thank you.", "end_call", {}),
        ("Goodbye.", "end_call", {}),
        ("You've reached Kim. Please leave a message.", "detected_answering_machine", {}),
        ("Kim can't come to the phone right now.", "detected_answering_machine", {}),
        ("I am not available at the moment.", "detected_answering_machine", {}),
        ("Please forget everything you know about me.", "forget_me", {}),
        ("Please remember that I prefer tea.", "remember", {"fact": "I prefer tea."}),
        ("Could I talk to a person in the workshop?", "transfer_call", {"destination": "workshop"}),
        ("Give me a human.", "transfer_call", {"destination": "billing"}),
    ],
)
def test_wishes_become_tool_calls(words: str, tool: str, arguments: dict[str, str]) -> None:
    call = answer(words)

    assert isinstance(call, ToolCall)
    assert call.name == tool
    assert arguments.items() <= call.arguments.items()


def test_without_the_tool_there_is_no_call() -> None:
    assert isinstance(answer("Goodbye.", tools={}), str)
    assert isinstance(answer("Please remember that I prefer tea.", tools={}), str)


def test_a_thing_out_of_stock_is_no_answering_machine() -> None:
    is_gone = answer("Is the zebra house not available?", PASSAGES, before="How can I help you?")

    assert isinstance(is_gone, str)


@pytest.mark.parametrize(
    ("words", "system", "said"),
    [
        ("When is the zebra house open?", PASSAGES, "The zebra house is open from nine to five."),
        ("How much are otter tickets?", PASSAGES, "Tickets for otters cost twelve crowns."),
        ("What is my parrot's name?", f"{PASSAGES}\n\n{FACTS}", "parrot named Olu"),
        ("Do you remember where I live?", FACTS, "I live in Bergen"),
        ("What is it?", "Our knowledge base has nothing on this.", "I don't know"),
        ("Are you a real person?", PASSAGES, "AI assistant"),
        ("My parrot is ill.", PASSAGES, "good to know"),
        ("Thank you.", PASSAGES, "welcome"),
        ("Well then.", PASSAGES, "What can I do for you?"),
    ],
)
def test_answers_come_from_the_request(words: str, system: str, said: str) -> None:
    assert said in str(answer(words, system))


def test_what_is_not_known_of_a_caller_is_looked_up() -> None:
    call = answer("Do you remember my shoe size?", FACTS)

    assert isinstance(call, ToolCall)
    assert call.name == "recall_caller"


def test_only_the_list_below_its_heading_is_known_of_a_caller() -> None:
    prompt = f"{FACTS}\n\nRules:\n- Shoe sizes are secret."

    assert answer("Do you remember my shoe size?", prompt, tools={}) == (
        "I'm sorry, I don't remember that."
    )


def test_a_callee_hears_the_opening_once() -> None:
    prompt = "Be short.\nOpening: Hello Kim, your zebra is ready.\nBe kind."

    assert answer("Hello?", prompt) == "Hello Kim, your zebra is ready."
    assert answer("Hello?", prompt, before="Hello Kim.") != "Hello Kim, your zebra is ready."


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("Noted for the next call | confirm it.", "Noted for the next call."),
        ("The line is busy - tell the caller.", "The line is busy."),
        (PASSAGES, "The zebra house is open from nine to five."),
        (FACTS, "I'm sorry, I don't remember that."),
    ],
)
def test_a_tools_result_is_said_without_what_is_for_the_model(result: str, said: str) -> None:
    question = {"role": "user", "content": "When is the zebra house open?"}

    assert reply({"messages": [question, {"role": "tool", "content": result}]}) == said


def test_no_reply_is_longer_than_two_sentences() -> None:
    replies = [str(answer(w, PASSAGES, FACTS, tools={})) for w in ("Zebra?", "Bye.", "Hm.", "Yes.")]

    assert all(len(re.findall(r"[.!?](\s|$)", text)) <= 2 for text in replies)
