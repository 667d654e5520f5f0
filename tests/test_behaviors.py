import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from livekit.agents import AgentSession, UserInputTranscribedEvent

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
