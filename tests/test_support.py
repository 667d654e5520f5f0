import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from livekit.agents import Agent
from livekit.agents.stt import SpeechData, SpeechEvent
from livekit.agents.stt import SpeechEventType as Speech

from call import DialRequest
from config import Settings
from support import CustomerSupport


@pytest.mark.parametrize("begun", [Speech.START_OF_SPEECH, Speech.INTERIM_TRANSCRIPT])
@pytest.mark.parametrize("over", [Speech.FINAL_TRANSCRIPT, Speech.END_OF_SPEECH])
async def test_the_opening_is_held_back_while_somebody_speaks(
    begun: Speech, over: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hear(*_: object) -> AsyncIterator[SpeechEvent]:
        for kind in (begun, over):
            yield SpeechEvent(kind, alternatives=[SpeechData(language="en", text="you've")])  # type: ignore[arg-type]

    async def speak(*_: object) -> AsyncIterator[str]:
        yield "frame"

    monkeypatch.setattr(Agent.default, "stt_node", hear)
    monkeypatch.setattr(Agent.default, "tts_node", speak)
    call = SimpleNamespace(request=DialRequest(phone_number="+15550100001"), is_inbound=False)
    settings = Settings()
    u: Any = SimpleNamespace(
        settings=settings, call=call, destinations={}, has_opened=False, is_winding_up=False
    )
    agent: Any = CustomerSupport(u)

    heard = agent.stt_node(None, None)
    await anext(heard)
    opening = asyncio.ensure_future(anext(agent.tts_node(None, None)))
    done, _ = await asyncio.wait([opening], timeout=0.1)
    assert not done
    await anext(heard)
    assert await asyncio.wait_for(opening, 1) == "frame"
