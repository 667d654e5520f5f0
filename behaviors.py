"""When X happens during a call, do Y: one function each, attached where the session is made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from functools import partial

from livekit.agents import (
    AgentSession,
    AgentStateChangedEvent,
    ConversationItemAddedEvent,
    ErrorEvent,
    UserInputTranscribedEvent,
    UserStateChangedEvent,
)
from livekit.agents.llm import ChatMessage, LLMError

import prompts
from call import Disposition, EndedBy, Ending
from userdata import Userdata

logger = logging.getLogger("behaviors")

Session = AgentSession[Userdata]

OPENING_SILENCE_S = 2.0
"""Silence after an outbound call is answered before the agent speaks first."""
OPENING_PAUSE_S = 0.75
"""Pause after the callee's words before the agent first speaks: recorded greetings pause, too."""
BEEP_LIMIT_S = 5.0
"""Silence after a recorded greeting before a message is left without a beep (beeps: 0.3-4 s)."""
UNFINISHED_S = 1.6
"""Wait for the rest of an utterance whose words break off."""
OPEN_S = 1.1
"""Least wait after words that neither break off nor end a sentence."""
FINISHED_S = 0.6
"""Longest wait after a whole sentence."""
MACHINE_LIMIT_S = 120.0
"""Longest wait for a machine to record; then the message is left whatever is heard."""
OUTAGES = 2
"""How often in a row speech recognition or synthesis may fail, its retries included."""
WARNING_S = 60.0
"""How long before the time limit the caller is warned, on calls long enough for it."""


def keep_account(session: Session, u: Userdata) -> None:
    """Count turns, interruptions, reply times, usage and errors into the call."""
    call = u.call

    @session.on("user_input_transcribed")
    def _(event: UserInputTranscribedEvent) -> None:
        call.has_spoken = call.has_spoken or bool(event.transcript.strip())

    @session.on("conversation_item_added")
    def _(event: ConversationItemAddedEvent) -> None:
        item = event.item
        if not isinstance(item, ChatMessage) or not (text := item.text_content):
            return
        if item.role == "user":
            call.turns += 1
            u.words.append(text)
        elif item.role == "assistant":
            u.has_opened = True
            call.interruptions += item.interrupted
            if (latency := item.metrics.get("e2e_latency")) is not None:
                call.reply_ms.append(latency * 1000)
        if u.settings.store_transcripts:
            speaker = "caller" if item.role == "user" else "agent"
            add_turn = partial(u.records.add_turn, is_interrupted=item.interrupted)
            u.write(asyncio.to_thread(add_turn, call.id, speaker, text), "store turn")

    @session.on("error")
    def _(event: ErrorEvent) -> None:
        kind = getattr(event.error, "type", type(event.error).__name__)
        cause = type(getattr(event.error, "error", event.error)).__name__
        call.errors.append(f"{kind}: {cause}")

    @session.on("session_usage_updated")
    def _(event: object) -> None:
        call.usage = [usage.model_dump(exclude_none=True) for usage in session.usage.model_usage]


def end_without_speech(session: Session, u: Userdata) -> None:
    """End the call if its other side can't be understood, or can't be spoken to, any more."""
    outages: Counter[str] = Counter()

    @session.on("user_input_transcribed")
    def _(event: UserInputTranscribedEvent) -> None:
        outages["stt_error"] = 0

    @session.on("agent_state_changed")
    def _(event: AgentStateChangedEvent) -> None:
        if event.new_state == "speaking":
            outages["tts_error"] = 0

    @session.on("error")
    def _(event: ErrorEvent) -> None:
        if isinstance(event.error, LLMError) or getattr(event.error, "recoverable", True):
            return
        kind = event.error.type
        outages[kind] += 1
        if outages[kind] < OUTAGES:
            if kind == "tts_error" and not u.is_winding_up:
                session.say(prompts.APOLOGY)
            return
        ending = Ending(Disposition.FAILED, EndedBy.SYSTEM, f"{kind}: {OUTAGES} in a row")
        if kind == "tts_error":
            u.end(ending)
        else:
            u.start(u.wind_up(session, prompts.CANNOT_HEAR, ending), "end without speech")


def end_with_the_line(u: Userdata) -> None:
    """The phone, or the room, is gone: the call is over."""

    async def watch() -> None:
        await u.line.left.wait()
        u.end(ending_of_hang_up(u))

    u.start(watch(), "end with the line")


def ending_of_hang_up(u: Userdata) -> Ending:
    """How a call ended whose other side has gone."""
    if u.line.is_lost:
        return Ending(Disposition.FAILED, EndedBy.SYSTEM, "the connection to LiveKit was lost")
    ended_by = EndedBy.SYSTEM if u.line.ended_by_server else EndedBy.CALLER
    if u.is_machine:
        return Ending(Disposition.VOICEMAIL, ended_by, "hung up before the message was left")
    if u.call.has_spoken:
        return Ending(Disposition.COMPLETED, ended_by, "hung up")
    return Ending(Disposition.ABANDONED, ended_by, "hung up before saying a word")


def judge_turns_by_words(session: Session, u: Userdata) -> None:
    """Let the words heard so far decide how long a pause is waited for.

    The turn detector hears only the sound of the last second. Words that break off ("I'd like
    to know") are waited for whatever it says; a whole sentence is not waited for long.

    The VAD takes a pause back when it hears more. Where it missed the words, as it does with one
    quiet "Hello" in forty, it may miss what follows, too: before the opening that is waited for.
    """
    patient, quick = u.settings.max_endpointing_delay_s, u.settings.min_endpointing_delay_s
    brief = min(patient, max(quick, FINISHED_S))
    open_ended = min(patient, max(quick, OPEN_S))
    sound_ended = float("-inf")

    def has_heard_sound() -> bool:
        return session.user_state == "speaking" or time.monotonic() - sound_ended < UNFINISHED_S

    @session.on("user_state_changed")
    def _(event: UserStateChangedEvent) -> None:
        nonlocal sound_ended
        if event.old_state == "speaking":
            sound_ended = time.monotonic()

    @session.on("user_input_transcribed")
    def _(event: UserInputTranscribedEvent) -> None:
        if not event.is_final or not session.current_agent:
            return
        # "Hello," goes on: "you've reached Sam".
        if prompts.sounds_unfinished(event.transcript):
            least = most = max(UNFINISHED_S, patient)
        elif u.call.request and not u.has_opened:
            least = most = OPENING_PAUSE_S if has_heard_sound() else UNFINISHED_S
        elif prompts.sounds_finished(event.transcript):
            least, most = quick, brief
        else:
            least, most = open_ended, patient
        session.update_options(endpointing_opts={"min_delay": least, "max_delay": most})


def limit_duration(session: Session, u: Userdata) -> None:
    """Warn, then end, a call that reaches MAX_CALL_S."""
    limit = u.settings.max_call_s

    async def watch() -> None:
        if limit > 2 * WARNING_S:
            await asyncio.sleep(limit - WARNING_S)
            session.say(prompts.TIME_NEARLY_UP)
            await asyncio.sleep(WARNING_S)
        else:
            await asyncio.sleep(limit)
        ending = Ending(Disposition.TIME_LIMIT, EndedBy.SYSTEM, "MAX_CALL_S reached")
        await u.wind_up(session, prompts.TIME_UP, ending)

    u.start(watch(), "limit duration")


def limit_silence(session: Session, u: Userdata) -> None:
    """Ask whether someone is there at half of SILENCE_LIMIT_S; hang up at the whole."""
    stirred = asyncio.Event()
    half = u.settings.silence_limit_s / 2

    @session.on("user_input_transcribed")
    @session.on("agent_state_changed")
    def _(event: UserInputTranscribedEvent | AgentStateChangedEvent) -> None:
        stirred.set()

    @session.on("user_state_changed")
    def _(event: UserStateChangedEvent) -> None:
        stirred.set()

    async def hears_nobody() -> bool:
        stirred.clear()
        try:
            await asyncio.wait_for(stirred.wait(), half)
        except asyncio.TimeoutError:
            is_busy = u.is_machine or u.is_transferring
            return session.agent_state == "listening" and not is_busy
        return False

    async def watch() -> None:
        while True:
            if not await hears_nobody():
                continue
            turns = u.call.turns
            await session.say(prompts.STILL_THERE)
            if await hears_nobody() and u.call.turns == turns:
                ending = Ending(Disposition.SILENT, EndedBy.SYSTEM, "SILENCE_LIMIT_S reached")
                await u.wind_up(session, prompts.NOBODY_THERE, ending)

    u.start(watch(), "limit silence")


def open_after_silence(session: Session, u: Userdata, opening: str) -> None:
    """On an answered outbound call, speak first once nothing was said for 2.0 s.

    Sound of which no words were understood counts as nothing said, once it is over.
    """
    stirred = asyncio.Event()
    answering = asyncio.Event()

    @session.on("user_state_changed")
    @session.on("user_input_transcribed")  # words may be understood that the VAD missed
    def _(event: UserStateChangedEvent | UserInputTranscribedEvent) -> None:
        stirred.set()

    @session.on("agent_state_changed")
    def _(event: AgentStateChangedEvent) -> None:
        if event.new_state in ("thinking", "speaking"):
            answering.set()
            stirred.set()

    async def watch() -> None:
        while not (answering.is_set() or u.is_machine):
            stirred.clear()
            try:
                await asyncio.wait_for(stirred.wait(), OPENING_SILENCE_S)
            except asyncio.TimeoutError:
                if session.user_state != "speaking" and not u.is_machine:
                    session.say(opening)
                    return

    u.start(watch(), "open after silence")


def leave_message(session: Session, u: Userdata) -> None:
    """Wait for the answering machine's beep, or for its silence, and leave the message."""
    if u.is_machine:
        return
    u.is_machine = True
    request = u.call.request
    message = (request.voicemail_message if request else "") or u.settings.voicemail_message
    ending = Ending(Disposition.VOICEMAIL, EndedBy.AGENT, "", message_left=bool(message))

    async def leave() -> None:
        await session.interrupt(force=True)
        if message:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_machine_is_recording(session, u), MACHINE_LIMIT_S)
        await u.wind_up(session, message, ending)

    u.start(leave(), "leave message")


async def _machine_is_recording(session: Session, u: Userdata) -> None:
    """Return after the beep, or after BEEP_LIMIT_S in which the machine said nothing."""
    u.beeps.heard.clear()
    talking = asyncio.Event()

    def on_sound(event: UserStateChangedEvent | UserInputTranscribedEvent) -> None:
        talking.set()

    session.on("user_state_changed", on_sound)
    session.on("user_input_transcribed", on_sound)
    try:
        while True:
            talking.clear()
            waits = [asyncio.ensure_future(e.wait()) for e in (u.beeps.heard, talking)]
            limit = None if session.user_state == "speaking" else BEEP_LIMIT_S
            done, rest = await asyncio.wait(
                waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
            for wait in rest:
                wait.cancel()
            if not done or u.beeps.heard.is_set():
                return
    finally:
        session.off("user_state_changed", on_sound)
        session.off("user_input_transcribed", on_sound)
