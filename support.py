"""The Customer Support agent: what it is told each turn, and how it opens a call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator

from livekit import rtc
from livekit.agents import Agent, AgentSession, APIError, FlushSentinel, ModelSettings, StopResponse
from livekit.agents.llm import ChatChunk, ChatContext, ChatMessage, Tool
from livekit.agents.stt import SpeechEvent
from livekit.agents.stt import SpeechEventType as Speech

import behaviors
import prompts
import providers
from records import RecordsUnavailable
from tools import tools_for
from userdata import Userdata

logger = logging.getLogger("support")

RECALL_LIMIT_S = 0.3
"""How long a greeting waits for what is remembered."""
GREETING_TURNS = 3
"""How many turns into an outbound call words may be those of an answering machine's greeting."""
OPENING_HOLD_S = 2.0
"""Longest that the opening is held back for the end of speech that has begun."""
CHUNK_GAP_S = 1.2
"""Longest silence of the model inside a reply before the reply counts as broken off."""


class CustomerSupport(Agent):
    """Answers from passages and memories, does what its tools can, and says what it is."""

    def __init__(self, u: Userdata) -> None:
        request = u.call.request
        company = u.settings.company_name
        super().__init__(
            instructions=prompts.instructions(company, request), tools=list(tools_for(u))
        )
        self._u = u
        self._opening = prompts.opening(company, request) if request else ""
        self._speech_over = asyncio.Event()
        """Unset from the beginning of an utterance to its end, as speech recognition has it."""
        self._speech_over.set()

    async def on_enter(self) -> None:
        """Greet an inbound caller; an outbound call listens first."""
        if not self._opening:
            is_known = bool(self._u.facts)
            self.session.say(prompts.greeting(self._u.settings.company_name, is_known=is_known))

    def open_outbound(self) -> None:
        """The callee has answered: speak first only if they stay silent."""
        behaviors.open_after_silence(self.session, self._u, self._opening)
        behaviors.limit_silence(self.session, self._u)

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        """Keep silent before machines and during the last sentence."""
        words, has_opened = new_message.text_content or "", self._u.has_opened
        may_be_machine = self._opening and self._u.call.turns < GREETING_TURNS
        if may_be_machine and prompts.sounds_recorded(words, is_reply=has_opened):
            behaviors.leave_message(self.session, self._u)
        if self._u.is_machine or self._u.is_winding_up:
            raise StopResponse

    def _is_opening(self, chat_ctx: ChatContext) -> bool:
        """Whether the agent has yet to say its first words of an outbound call."""
        return bool(self._opening) and not any(m.role == "assistant" for m in chat_ctx.messages())

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncIterable[SpeechEvent | str]:
        """Listen for an answering machine's beep beside the words."""

        async def overheard() -> AsyncIterator[rtc.AudioFrame]:
            async for frame in audio:
                if not self._u.call.is_inbound:
                    self._u.beeps.push(frame)
                yield frame

        async for event in Agent.default.stt_node(self, overheard(), model_settings):
            if isinstance(event, SpeechEvent):
                if event.type in (Speech.START_OF_SPEECH, Speech.INTERIM_TRANSCRIPT):
                    self._speech_over.clear()
                elif event.type in (Speech.FINAL_TRANSCRIPT, Speech.END_OF_SPEECH):
                    self._speech_over.set()
            yield event

    async def llm_node(
        self, chat_ctx: ChatContext, tools: list[Tool], model_settings: ModelSettings
    ) -> AsyncIterable[ChatChunk | str | FlushSentinel]:
        """One reply: the opening, or the model's, or an apology if the model fails."""
        if self._is_opening(chat_ctx):
            yield self._opening
            return
        informed = await self._informed(chat_ctx)
        stream = Agent.default.llm_node(self, informed, tools, model_settings).__aiter__()
        has_begun = has_answered = False
        try:
            while True:
                patience = CHUNK_GAP_S if has_begun else self._u.settings.model_timeout_s
                chunk = await asyncio.wait_for(stream.__anext__(), patience)
                has_begun = True
                has_answered |= not isinstance(chunk, ChatChunk) or chunk.has_response()
                yield chunk
        except StopAsyncIteration:
            if has_answered or not _is_owed_a_reply(chat_ctx):
                return
            self._u.call.errors.append("model: empty reply")
            has_begun = False
        except (APIError, asyncio.TimeoutError) as error:
            logger.warning("the model failed", extra={"error": type(error).__name__})
            self._u.call.errors.append(f"model: {type(error).__name__}")
        yield f" {prompts.BROKE_OFF}" if has_begun else prompts.APOLOGY

    async def tts_node(
        self, text: AsyncIterable[str], model_settings: ModelSettings
    ) -> AsyncIterable[rtc.AudioFrame]:
        """Hold the opening back from speech the VAD missed: a recorded greeting is not spoken into.

        Once its words are final, their own turn takes its place.
        """
        is_held = self._opening and not self._u.has_opened and not self._u.is_winding_up
        async for frame in Agent.default.tts_node(self, text, model_settings):
            if is_held:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._speech_over.wait(), OPENING_HOLD_S)
                is_held = False
            yield frame

    async def _informed(self, chat_ctx: ChatContext) -> ChatContext:
        """The conversation with what we know of the caller and passages for their words."""
        chat_ctx = chat_ctx.copy()
        last = chat_ctx.items[-1] if chat_ctx.items else None
        if isinstance(last, ChatMessage) and last.role == "user" and last.text_content:
            found = await asyncio.to_thread(self._u.knowledge.search, last.text_content)
            passages = ChatMessage(role="system", content=[prompts.passages(found)])
            chat_ctx.items.insert(len(chat_ctx.items) - 1, passages)
        if self._u.facts:
            facts = ChatMessage(role="system", content=[prompts.known_facts(self._u.facts)])
            chat_ctx.items.insert(1, facts)
        return chat_ctx


def _is_owed_a_reply(chat_ctx: ChatContext) -> bool:
    """Whether the caller had the last word: after a tool, saying nothing may be right."""
    last = chat_ctx.items[-1] if chat_ctx.items else None
    return isinstance(last, ChatMessage) and last.role == "user"


async def recall(u: Userdata) -> None:
    """Read what is remembered into the call, however long it takes."""
    if u.call.number and u.remembers:
        with contextlib.suppress(RecordsUnavailable):
            u.facts[:] = await asyncio.to_thread(u.memory.known, u.call.number)


async def open_session(u: Userdata, room: rtc.Room, identity: str = "") -> CustomerSupport:
    """Start the session the call is spoken in, with its behaviours."""
    session: AgentSession[Userdata] = providers.session(u.settings, u)
    behaviors.keep_account(session, u)
    behaviors.judge_turns_by_words(session, u)
    behaviors.end_without_speech(session, u)
    behaviors.limit_duration(session, u)
    if u.call.is_inbound:
        behaviors.limit_silence(session, u)
    agent = CustomerSupport(u)
    options = providers.room_options(u.settings)
    if identity:
        options.participant_identity = identity
    recalling = u.start(recall(u), "recall")
    await asyncio.wait([recalling], timeout=RECALL_LIMIT_S)
    await session.start(agent=agent, room=room, room_options=options, record=False)
    return agent
