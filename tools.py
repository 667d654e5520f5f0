"""What the agent can do for the caller: one function, one verb."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from livekit.agents import FunctionTool, RunContext, StopResponse, ToolError, function_tool
from livekit.agents.llm import RawFunctionTool

import behaviors
import prompts
from call import Disposition, EndedBy, Ending, transfer_uri
from records import RecordsUnavailable
from telephony import CallerLeft, TransferFailed
from userdata import Userdata

Context = RunContext[Userdata]
Tool = FunctionTool | RawFunctionTool

SAY_SO_AFTER_S = 0.8
"""How long a tool works in silence."""


class Refusal(ToolError):
    """A tool could not do what was asked; `code` names why in one word for the records."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def recorded(tool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Write each use of `tool` into the call's record: its name, result code and ms."""

    @functools.wraps(tool)
    async def run(*args: Any, **kwargs: Any) -> Any:
        context: Context = kwargs.get("context") or next(
            a for a in args if isinstance(a, RunContext)
        )
        u, started, code = context.userdata, time.monotonic(), "failed"
        try:
            result = await tool(*args, **kwargs)
            code = "ok"
            return result
        except StopResponse:
            code = "ok"
            raise
        except Refusal as refusal:
            code = refusal.code
            raise
        finally:
            ms = (time.monotonic() - started) * 1000
            note = functools.partial(u.records.add_tool_call, u.call.id, run.__name__, code, ms)
            u.write(asyncio.to_thread(note), "record tool call")

    return run


def tools_for(u: Userdata) -> list[Tool]:
    """The tools of one call."""
    return [
        transfer_tool(list(u.destinations)),
        end_call,
        *([] if u.call.is_inbound else [detected_answering_machine]),
        search_knowledge,
        recall_caller,
        remember,
        forget_me,
    ]


def transfer_tool(destinations: list[str]) -> RawFunctionTool:
    """`transfer_call`, with this call's destinations in its schema."""
    destination: dict[str, Any] = {
        "type": "string",
        "description": "Who the caller is put through to.",
    }
    if destinations:
        destination["enum"] = destinations
    schema = {
        "name": "transfer_call",
        "description": (
            "Put the caller through to a person. Use it when they ask for a person, or agree to "
            "be put through. Not for ending the call."
        ),
        "parameters": {
            "type": "object",
            "properties": {
                "destination": destination,
                "reason": {"type": "string", "description": "What it is about, in a few words."},
            },
            "required": ["destination", "reason"],
            "additionalProperties": False,
        },
    }
    return function_tool(_transfer_call, raw_schema=schema)


async def transfer_call(context: Context, destination: str) -> None:
    """Transfer the caller by SIP REFER; Refusal if they stay on the line."""
    u = context.userdata
    number = u.destinations.get(destination)
    if number is None:
        raise Refusal(
            "There is nobody by that name to put the caller through to - say so and offer what "
            "else you can do.",
            "no_such_destination",
        )
    await context.update(prompts.TRANSFERRING, silent=True)
    await context.session.say(prompts.TRANSFERRING, allow_interruptions=False)
    u.transferring = u.start(u.line.transfer(transfer_uri(number)), "transfer")
    await asyncio.wait([u.transferring])
    if u.transferring.cancelled():
        raise StopResponse  # the call has ended meanwhile
    try:
        u.transferring.result()
    except TransferFailed as failure:
        raise Refusal(
            f"The transfer did not work: {failure} - tell the caller that they are still with "
            "you, and offer to help or to try again later.",
            str(failure),
        ) from None
    except CallerLeft:
        u.end(behaviors.ending_of_hang_up(u))
        raise StopResponse from None
    u.call.destination = destination
    u.end(Ending(Disposition.TRANSFERRED, EndedBy.AGENT, "transferred"))
    raise StopResponse


@recorded
async def _transfer_call(raw_arguments: dict[str, object], context: Context) -> None:
    await transfer_call(context, str(raw_arguments.get("destination", "")))


_transfer_call.__name__ = "transfer_call"


@function_tool
@recorded
async def end_call(context: Context) -> None:
    """End the call. Use it when the caller says goodbye, is done, or does not want to talk.

    It says goodbye by itself. Not for silence, and not while the caller still wants something.
    """
    u = context.userdata
    ending = Ending(Disposition.COMPLETED, EndedBy.AGENT, "end_call")
    farewell = u.wind_up(context.session, prompts.GOODBYE, ending, at_once=False)
    u.start(farewell, "farewell")
    raise StopResponse


@function_tool
@recorded
async def detected_answering_machine(context: Context) -> None:
    """Use it when a recording, a mailbox or an answering machine has answered the call.

    It leaves the message after the beep and hangs up. Say nothing yourself.
    """
    behaviors.leave_message(context.session, context.userdata)
    raise StopResponse


@function_tool
@recorded
async def search_knowledge(context: Context, question: str) -> str:
    """Search our knowledge base, if the passages you were given don't answer the caller.

    Args:
        question: What to look up, as one full question.
    """
    found = await asyncio.to_thread(context.userdata.knowledge.search, question)
    return prompts.passages(found)


@function_tool
@recorded
async def recall_caller(context: Context, topic: str) -> str:
    """Look up what we remember of this caller from earlier calls.

    Args:
        topic: What to recall, in a few words.
    """
    u = context.userdata
    number = _known_number(u)
    facts = await _committed(context, asyncio.to_thread(u.memory.search, number, topic))
    return prompts.known_facts(facts) if facts else "We remember nothing about that | say so."


@function_tool
@recorded
async def remember(context: Context, fact: str) -> str:
    """Remember something about the caller for later calls, when they ask you to.

    Args:
        fact: What to remember, as one sentence in the caller's words.
    """
    u = context.userdata
    number = _known_number(u)
    await _committed(context, asyncio.to_thread(u.memory.remember, number, u.call.id, fact))
    return "Noted for the next call | confirm it in a few words."


@function_tool
@recorded
async def forget_me(context: Context) -> str:
    """Delete all we remember of this caller. Use it when they ask to be forgotten."""
    u = context.userdata
    number = _known_number(u)
    await _committed(context, asyncio.to_thread(u.memory.forget, number, u.call.id))
    u.call.learns = False
    u.facts.clear()
    return "What we knew of the caller is deleted; nothing of this call is kept | tell them."


def _known_number(u: Userdata) -> str:
    if u.call.number is None:
        raise Refusal(
            "The caller's number is withheld, so nothing is remembered - tell them.", "withheld"
        )
    if not u.call.learns:
        raise Refusal("The caller asked to be forgotten - nothing is kept of them.", "forgotten")
    return u.call.number


async def _committed(context: Context, work: Awaitable[Any]) -> Any:
    """The result of `work`; the caller hears of it if it takes long."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=SAY_SO_AFTER_S)
    if not done:
        await context.update(prompts.ONE_MOMENT, silent=True)
        context.session.say(prompts.ONE_MOMENT)
    try:
        return await task
    except RecordsUnavailable:
        raise Refusal(
            "That can't be reached just now - tell the caller, and go on.", "unavailable"
        ) from None
