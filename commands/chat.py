"""Type to the same agent, tools, knowledge and memory in a terminal: `./task chat`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from livekit.agents import AgentSession
from livekit.agents.llm import ChatMessage

import behaviors
import providers
from call import Call, Direction, Disposition, EndedBy, Ending
from config import BadSetting, Settings
from memory import Memory
from rag import Knowledge
from records import Records, RecordsUnavailable
from support import CustomerSupport, recall
from telephony import TransferFailed
from userdata import Userdata

LEARN_LIMIT_S = 5.0
"""How long the end of a chat waits for what is learned from it."""


class TypedLine:
    """The line of a typed conversation: nobody can be put through, nothing rings."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.ended_by_server = self.is_lost = False

    async def transfer(self, uri: str) -> None:
        raise TransferFailed("not possible in a chat")


@asynccontextmanager
async def with_model(settings: Settings) -> AsyncIterator[Settings]:
    """The settings, with the simulator's stand-in model if there is no key."""
    if settings.openai_api_key:
        yield settings
        return
    try:
        from simulator.providers import StandInProviders  # noqa: PLC0415 not with a key
    except ModuleNotFoundError as error:
        sys.exit(f"OPENAI_API_KEY is not set, and the stand-in model needs {error.name}")
    print("OPENAI_API_KEY is not set: a stand-in model answers, by simple rules.")
    stand_ins = StandInProviders()
    await stand_ins.start()
    try:
        env = stand_ins.env()
        yield dataclasses.replace(
            settings,
            openai_api_key=env["OPENAI_API_KEY"],
            openai_base_url=env["OPENAI_BASE_URL"],
            memory_model="",
            embedding_model="",
        )
    finally:
        await stand_ins.stop()


def make_userdata(settings: Settings, number: str | None) -> Userdata:
    records = Records(settings.records_url, spool=settings.data_dir / "spool")
    records.migrate()
    memory = Memory(settings, records)
    memory.start()
    name = f"chat-{uuid.uuid4().hex[:12]}"
    call = Call(name, name, name, "chat", Direction.INBOUND, number, learns=number is not None)
    return Userdata(
        call=call,
        settings=settings,
        records=records,
        memory=memory,
        knowledge=Knowledge(settings),
        line=TypedLine(),
        finish=lambda: None,
    )


async def converse(settings: Settings, number: str | None) -> None:
    """Read lines until the caller is done, then record and learn as after a phone call."""
    u = make_userdata(settings, number)
    await asyncio.to_thread(u.records.open, u.call)
    await recall(u)
    try:
        async with AgentSession(llm=providers.model(settings), userdata=u) as session:
            behaviors.keep_account(session, u)
            _print_what_is_said(session)
            await session.start(CustomerSupport(u))
            await _read_lines(session, u)
    finally:
        u.call.end(Ending(Disposition.COMPLETED, EndedBy.CALLER, "left the chat"))
        if number and u.words and u.remembers:
            await asyncio.to_thread(u.memory.learn, number, u.call.id, u.words)
        await u.settle()
        await asyncio.to_thread(u.records.save, u.call)
        await asyncio.to_thread(wait_until_learned, u.records, u.call.id)
        await asyncio.to_thread(u.memory.close)


def wait_until_learned(records: Records, call_id: str) -> None:
    """Let the next chat know what was said in this; what takes longer, the next owner learns."""
    deadline = time.monotonic() + LEARN_LIMIT_S
    try:
        while any(work.call_id == call_id for work in records.pending_work()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
    except RecordsUnavailable:
        return


def _print_what_is_said(session: AgentSession[Userdata]) -> None:
    @session.on("conversation_item_added")
    def _(event: object) -> None:
        item = getattr(event, "item", None)
        if isinstance(item, ChatMessage) and item.role == "assistant":
            print(f"agent: {item.text_content}", flush=True)


async def _read_lines(session: AgentSession[Userdata], u: Userdata) -> None:
    while not u.call.ending:
        print("you: ", end="", flush=True)
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            return
        if line.strip():
            u.call.has_spoken = True
            await session.run(user_input=line.strip())
        if u.pending:
            await asyncio.wait(list(u.pending), timeout=5)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./task chat --", description=__doc__)
    parser.add_argument("--number", help="the number you are remembered by (default: withheld)")
    options = parser.parse_args(arguments)

    async def run(settings: Settings) -> None:
        async with with_model(settings) as ready:
            await converse(ready, options.number)

    try:
        settings = Settings.load()
        providers.load(settings)
        asyncio.run(run(settings))
    except BadSetting as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
