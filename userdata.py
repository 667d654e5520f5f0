"""What a tool can reach: the call and the injected services."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from livekit.agents import AgentSession

from call import Call, Ending
from config import Settings
from memory import Memory
from rag import Knowledge
from records import Records
from telephony import BeepListener, Line


@dataclass
class Userdata:
    """One call's state, for its tools and behaviours; lives on the job's event loop."""

    call: Call
    settings: Settings
    records: Records
    memory: Memory
    knowledge: Knowledge
    line: Line
    finish: Callable[[], None]
    """Ends the job: the session closes, then the record."""
    facts: list[str] = field(default_factory=list)
    """What is remembered about the caller, as far as it has been read."""
    words: list[str] = field(default_factory=list)
    """The caller's own utterances, in order."""
    beeps: BeepListener = field(default_factory=BeepListener)
    has_opened: bool = False
    """Whether the agent has said its first words."""
    is_machine: bool = False
    """Whether an answering machine was found at the other end."""
    transferring: asyncio.Task | None = None
    """A transfer of the caller, tried or done."""
    is_winding_up: bool = False
    """Whether the last sentence is being said; nothing else is answered."""
    pending: set[asyncio.Task] = field(default_factory=set)
    """Work beside the conversation; it ends with the call."""
    writes: set[asyncio.Task] = field(default_factory=set)
    """What must be stored before the record is closed."""

    @property
    def destinations(self) -> Mapping[str, str]:
        """Where the caller may be put through: name -> number or SIP URI."""
        request = self.call.request
        return {**self.settings.transfer_destinations, **(request.destinations if request else {})}

    @property
    def remembers(self) -> bool:
        """Whether memory may be read or written for this caller."""
        return self.call.number is not None and self.call.learns

    @property
    def is_transferring(self) -> bool:
        """Whether somebody else is being rung for the caller."""
        return self.transferring is not None and not self.transferring.done()

    def start(self, work: Awaitable[None], name: str) -> asyncio.Task:
        """Run `work` beside the conversation, until the call ends."""
        return _kept(self.pending, work, name)

    def write(self, work: Awaitable[None], name: str) -> asyncio.Task:
        """Store something beside the conversation; the call's end waits for it."""
        return _kept(self.writes, work, name)

    async def settle(self) -> None:
        """At the call's end: stop what runs beside it, finish what is to be stored."""
        for task in self.pending:
            task.cancel()
        await asyncio.gather(*self.pending, *self.writes, return_exceptions=True)

    def end(self, ending: Ending) -> None:
        """End the call now; the first ending stands, and nobody is rung any longer."""
        self.call.end(ending)
        if self.transferring:
            self.transferring.cancel()
        self.finish()

    async def wind_up(
        self,
        session: AgentSession[Userdata],
        last_words: str,
        ending: Ending,
        *,
        at_once: bool = True,
    ) -> None:
        """Say `last_words` to their end, unless the other side hangs up first, then end.

        `at_once` cuts off what is being said; otherwise it is finished first.
        """
        if self.is_winding_up:
            return
        self.is_winding_up = True
        if at_once:
            await session.interrupt(force=True)
        try:
            if last_words:
                said = session.say(last_words, allow_interruptions=False)
                await said
                if not said.chat_items:  # the voice failed
                    ending = replace(ending, message_left=False)
        finally:
            self.end(ending)


def _kept(tasks: set[asyncio.Task], work: Awaitable[None], name: str) -> asyncio.Task:
    task = asyncio.ensure_future(work)
    task.set_name(name)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
