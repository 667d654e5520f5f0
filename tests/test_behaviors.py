import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import (
    AgentSession,
    UserInputTranscribedEvent,
    UserStateChangedEvent,
)
from livekit.agents.voice.events import UserState

import behaviors


async def test_words_that_the_vad_missed_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviors, "OPENING_SILENCE_S", 1.0)
    clock = asyncio.get_running_loop().time
    opened: asyncio.Future[float] = asyncio.Future()
    session: AgentSession[Any] = AgentSession()
    monkeypatch.setattr(session, "say", lambda opening: opened.set_result(clock()))
    u: Any = SimpleNamespace(is_machine=False, start=lambda work, _: asyncio.ensure_future(work))

    behaviors.open_after_silence(session, u, "Hello.")
    last_word = clock()
    for words in ("Hello,", "you've", "reached", "Sam."):
        await asyncio.sleep(0.3)
        last_word = clock()
        heard = UserInputTranscribedEvent(transcript=words, is_final=False)
        session.emit("user_input_transcribed", heard)

    assert await asyncio.wait_for(opened, 5) - last_word >= 0.9


@pytest.mark.parametrize(
    ("states", "pause_s"),
    [
        ([], behaviors.UNFINISHED_S),
        (["speaking"], behaviors.OPENING_PAUSE_S),
        (["speaking", "listening"], behaviors.OPENING_PAUSE_S),
    ],
)
async def test_before_the_opening_words_that_the_vad_missed_are_waited_for(
    states: list[UserState], pause_s: float
) -> None:
    waits = {}

    class Session(rtc.EventEmitter[Any]):
        current_agent = object()
        user_state: UserState = "listening"

        def update_options(self, endpointing_opts: dict[str, float]) -> None:
            waits.update(endpointing_opts)

    session: Any = Session()
    settings = SimpleNamespace(max_endpointing_delay_s=1.6, min_endpointing_delay_s=0.35)
    call = SimpleNamespace(request=object())
    u: Any = SimpleNamespace(settings=settings, call=call, has_opened=False)

    behaviors.judge_turns_by_words(session, u)
    for state in states:
        changed = UserStateChangedEvent(old_state=session.user_state, new_state=state)
        session.user_state = state
        session.emit("user_state_changed", changed)
    session.emit(
        "user_input_transcribed", UserInputTranscribedEvent(transcript="Hello?", is_final=True)
    )

    assert waits == {"min_delay": pause_s, "max_delay": pause_s}
