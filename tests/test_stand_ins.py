"""The real plugins take the stand-ins for their providers: when they work and when they fail."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, stt
from livekit.agents.llm import ChatContext, function_tool
from livekit.plugins import cartesia, deepgram, openai

from simulator.providers import StandInProviders
from simulator.speech import RATE, mu_law, silence, synthesize, telephone_line

ONCE = APIConnectOptions(max_retry=0, timeout=1.0)
QUESTION = "Where is my order?"


@pytest_asyncio.fixture
async def stand_ins() -> AsyncIterator[StandInProviders]:
    stand_ins = StandInProviders()
    for behavior in stand_ins.services.values():
        behavior.delay.ms = 20
    await stand_ins.start()
    yield stand_ins
    await stand_ins.stop()


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


# Speech to text


class Caller:
    """Speaks into a Deepgram stream, faster than time; `events` is all that it was told."""

    def __init__(self, stand_ins: StandInProviders, http: aiohttp.ClientSession) -> None:
        env = stand_ins.env()
        plugin = deepgram.STT(
            api_key=env["DEEPGRAM_API_KEY"], base_url=env["DEEPGRAM_BASE_URL"], http_session=http
        )
        self._stand_ins = stand_ins
        self._stream = plugin.stream(conn_options=ONCE)
        self._news = asyncio.Event()
        self.events: list[stt.SpeechEvent] = []
        self.times: list[float] = []
        """Of the event loop, at which each event came."""
        self.listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for event in self._stream:
            self.events.append(event)
            self.times.append(asyncio.get_running_loop().time())
            self._news.set()

    def say(self, text: str, *, known: bool = True, share: float = 1.0) -> float:
        """The event loop's time at which it, or the first `share` of it, was said."""
        pcm = self._stand_ins.announce(text, "caller") if known else synthesize(text)
        pcm = pcm[: round(len(pcm) * share)]
        pcm = np.concatenate([telephone_line(pcm), silence(0.6)])
        self._stream.push_frame(rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm)))
        return asyncio.get_running_loop().time()

    async def finals(self, ends: int = 1) -> list[str]:
        """All finals, once so many utterances have ended."""
        while [event.type for event in self.events].count(ENDED) < ends:
            assert not self.listening.done()
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 5)
        return words(self.events, FINAL)

    async def close(self) -> None:
        await self._stream.aclose()
        await asyncio.gather(self.listening, return_exceptions=True)

    async def failed(self) -> None:
        """Wait for the stream to fail."""
        with pytest.raises(APIError):
            await asyncio.wait_for(self.listening, 5)


def words(events: list[stt.SpeechEvent], kind: stt.SpeechEventType) -> list[str]:
    return [event.alternatives[0].text for event in events if event.type == kind]


@pytest_asyncio.fixture
async def new_caller(
    stand_ins: StandInProviders, http: aiohttp.ClientSession
) -> AsyncIterator[Callable[[], Caller]]:
    callers: list[Caller] = []

    def make() -> Caller:
        callers.append(Caller(stand_ins, http))
        return callers[-1]

    yield make
    for caller in callers:
        await caller.close()


FINAL = stt.SpeechEventType.FINAL_TRANSCRIPT
INTERIM = stt.SpeechEventType.INTERIM_TRANSCRIPT
ENDED = stt.SpeechEventType.END_OF_SPEECH


async def test_a_caller_is_understood_first_in_part_then_in_full(
    stand_ins: StandInProviders, new_caller: Callable[[], Caller]
) -> None:
    text = "What time do you open on Sundays?"
    caller = new_caller()
    caller.say(text)
    finals = await caller.finals()
    final = next(event.alternatives[0] for event in caller.events if event.type == FINAL)
    interims = words(caller.events, INTERIM)

    assert finals == [text]
    assert interims and all(text.startswith(part) for part in interims)
    assert caller.events[0].type == stt.SpeechEventType.START_OF_SPEECH
    assert final.end_time == pytest.approx(len(synthesize(text)) / RATE, abs=0.25)
    assert final.words and len(final.words) == len(text.split())


async def test_a_pause_makes_two_finals(
    stand_ins: StandInProviders, new_caller: Callable[[], Caller]
) -> None:
    caller = new_caller()
    caller.say("How much does delivery [0.5] cost for a sofa?")

    assert await caller.finals(2) == ["How much does delivery", "cost for a sofa?"]


async def test_what_follows_an_utterance_that_broke_off_is_understood(
    stand_ins: StandInProviders, new_caller: Callable[[], Caller]
) -> None:
    caller = new_caller()
    caller.say("How much does delivery cost for a sofa?", share=0.5)
    caller.say("What time do you open on Sundays?")

    assert (await caller.finals(2))[1] == "What time do you open on Sundays?"


async def test_what_follows_a_beginning_that_was_taken_for_another_utterance_is_understood(
    stand_ins: StandInProviders, new_caller: Callable[[], Caller]
) -> None:
    stand_ins.announce("Hello?", "callee")
    caller = new_caller()
    caller.say("Hello, you've reached Sam.")

    assert await caller.finals(2) == ["Hello?", "you've reached Sam."]


async def test_a_final_comes_so_long_after_the_last_sound(
    stand_ins: StandInProviders, new_caller: Callable[[], Caller]
) -> None:
    stand_ins.services["stt"].delay.ms = 400
    caller = new_caller()
    spoken = caller.say(QUESTION)
    await caller.finals()
    at = next(t for t, e in zip(caller.times, caller.events, strict=True) if e.type == FINAL)

    assert at - spoken == pytest.approx(0.4, abs=0.15)


async def test_words_that_nobody_announced_are_not_understood_but_end(
    stand_ins: StandInProviders, new_caller: Callable[[], Caller]
) -> None:
    stand_ins.announce(QUESTION, "caller")
    caller = new_caller()
    caller.say("The quick brown fox jumps over a lazy dog.", known=False)

    assert await caller.finals() == []


async def test_words_just_before_the_stream_closes_are_not_lost(
    stand_ins: StandInProviders, http: aiohttp.ClientSession
) -> None:
    stand_ins.services["stt"].delay.ms = 300
    pcm = stand_ins.announce(QUESTION, "caller")
    async with http.ws_connect(f"{stand_ins.url}/v1/listen?sample_rate=16000") as socket:
        await socket.send_json({"type": "KeepAlive"})
        await socket.send_bytes(pcm.tobytes())
        await socket.send_json({"type": "CloseStream"})
        messages = [json.loads(m.data) async for m in socket]
    finals = [m for m in messages if m.get("is_final")]

    assert [m["channel"]["alternatives"][0]["transcript"] for m in finals] == [QUESTION]
    assert messages[-1]["type"] == "Metadata"


@pytest.mark.parametrize("fault", ["refuse", "hang", "cut"])
async def test_a_speech_to_text_fault_is_met_and_then_over(
    stand_ins: StandInProviders, new_caller: Callable[[], Caller], fault: str
) -> None:
    stand_ins.fault("stt", fault)
    caller = new_caller()
    caller.say("I would like to talk to a person, please.")
    await caller.failed()
    again = new_caller()
    again.say(QUESTION)

    assert await again.finals() == [QUESTION]


async def test_a_live_stream_is_cut_off_in_mid_sentence(
    stand_ins: StandInProviders, new_caller: Callable[[], Caller]
) -> None:
    caller = new_caller()
    caller.say(QUESTION)
    await caller.finals()
    stand_ins.fault("stt", "cut")
    caller.say("I would like to talk to a person, please.")
    await caller.failed()

    assert words(caller.events, FINAL) == [QUESTION]


# The model


def model(stand_ins: StandInProviders) -> openai.LLM:
    env = stand_ins.env()
    return openai.LLM(
        model="any", api_key=env["OPENAI_API_KEY"], base_url=env["OPENAI_BASE_URL"], max_retries=0
    )


def said_by(who: Any, text: str) -> ChatContext:
    context = ChatContext.empty()
    context.add_message(role=who, content=text)
    return context


async def test_the_model_streams_its_words(stand_ins: StandInProviders) -> None:
    stream = model(stand_ins).chat(chat_ctx=said_by("user", "Are you a robot?"), conn_options=ONCE)
    chunks = [chunk async for chunk in stream]
    parts = [chunk.delta.content for chunk in chunks if chunk.delta and chunk.delta.content]

    assert "".join(parts) == "I am an AI assistant."
    assert len(parts) == 5
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [20]


async def test_the_model_calls_tools(stand_ins: StandInProviders) -> None:
    @function_tool
    async def end_call() -> None:
        """End the call."""

    stream = model(stand_ins).chat(
        chat_ctx=said_by("user", "That's all, bye."), tools=[end_call], conn_options=ONCE
    )
    calls = [
        c for chunk in [x async for x in stream] if chunk.delta for c in chunk.delta.tool_calls
    ]

    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("end_call", {})]
    assert [entry.what for entry in stand_ins.log if entry.service == "llm"] == ["→ end_call"]


@pytest.mark.parametrize("fault", ["refuse", "hang", "cut"])
async def test_a_fault_of_the_model_is_met_and_then_over(
    stand_ins: StandInProviders, fault: str
) -> None:
    plugin, context = model(stand_ins), said_by("user", "Is it open, and if so until when?")
    stand_ins.fault("llm", fault)
    with pytest.raises(APIError):
        async for _ in plugin.chat(chat_ctx=context, conn_options=ONCE):
            pass
    stream = plugin.chat(chat_ctx=context, conn_options=ONCE)

    assert "".join([c.delta.content or "" async for c in stream if c.delta])


async def test_a_completion_may_come_whole(
    stand_ins: StandInProviders, http: aiohttp.ClientSession
) -> None:
    body = {"model": "any", "messages": [{"role": "user", "content": "Are you real?"}]}
    async with http.post(f"{stand_ins.url}/v1/chat/completions", json=body) as response:
        completion = await response.json()

    assert completion["choices"][0]["message"]["content"] == "I am an AI assistant."


async def test_embeddings_are_alike_where_words_are(
    stand_ins: StandInProviders, http: aiohttp.ClientSession
) -> None:
    texts = ["returning kettles", "return a kettle", "opening hours"]

    async def embedded(**more: object) -> list[Any]:
        body = {"model": "any", "input": texts, "dimensions": 64} | more
        async with http.post(f"{stand_ins.url}/v1/embeddings", json=body) as response:
            return [item["embedding"] for item in (await response.json())["data"]]

    plain = np.array(await embedded())
    coded = [base64.b64decode(text) for text in await embedded(encoding_format="base64")]

    assert plain.shape == (3, 64)
    assert plain[0] @ plain[1] > 0.9
    assert plain[0] @ plain[2] < 0.5
    assert np.allclose(plain, [np.frombuffer(c, np.float32) for c in coded])


# Text to speech


def voice(stand_ins: StandInProviders, http: aiohttp.ClientSession) -> cartesia.TTS:
    env = stand_ins.env()
    return cartesia.TTS(
        api_key=env["CARTESIA_API_KEY"], base_url=env["CARTESIA_BASE_URL"], http_session=http
    )


async def spoken(tts: cartesia.TTS, text: str) -> tuple[np.ndarray, list[str]]:
    """The samples, and the words they came with."""
    async with tts.stream(conn_options=ONCE) as stream:
        stream.push_text(text)
        stream.end_input()
        frames, timed = [], []
        async for event in stream:
            frames.append(np.frombuffer(event.frame.data, np.int16))
            timed += event.frame.userdata.get("lk.timed_transcripts", [])
    return np.concatenate(frames), [str(word) for word in timed]


async def test_the_voice_says_the_sentence_and_its_words_times(
    stand_ins: StandInProviders, http: aiohttp.ClientSession
) -> None:
    tts = voice(stand_ins, http)
    pcm, timed = await spoken(tts, "Your order has arrived today.")
    await tts.aclose()
    own = synthesize("Your order has arrived today.", voice="agent", sample_rate=tts.sample_rate)

    assert np.array_equal(pcm[: len(own)], own)
    assert "".join(timed).split() == ["Your", "order", "has", "arrived", "today."]
    assert stand_ins.agent_ear.hear(synthesize("Your order has arrived today.", voice="agent")).text


@pytest.mark.parametrize("is_pooled", [False, True])
@pytest.mark.parametrize("fault", ["refuse", "hang", "cut"])
async def test_a_fault_of_the_voice_is_met_and_then_over(
    stand_ins: StandInProviders, http: aiohttp.ClientSession, fault: str, is_pooled: bool
) -> None:
    tts = voice(stand_ins, http)
    if is_pooled:
        await spoken(tts, "Yes.")
    stand_ins.fault("tts", fault)
    with pytest.raises(APIError):
        await spoken(tts, "Your order has arrived today.")
    pcm, _ = await spoken(tts, "Your order has arrived today.")
    await tts.aclose()

    assert len(pcm) > tts.sample_rate


@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le", "pcm_mulaw"])
async def test_the_voice_speaks_in_the_encoding_asked_for(
    stand_ins: StandInProviders, http: aiohttp.ClientSession, encoding: str
) -> None:
    own = synthesize("Yes.", voice="agent", sample_rate=8000)
    wanted = {
        "pcm_s16le": own.tobytes(),
        "pcm_f32le": (own / np.float32(32768)).tobytes(),
        "pcm_mulaw": mu_law(own),
    }
    form = {"encoding": encoding, "sample_rate": 8000}
    async with http.ws_connect(f"{stand_ins.url}/tts/websocket") as socket:
        await socket.send_json({"context_id": "a", "transcript": "Yes.", "output_format": form})
        messages: list[dict[str, Any]] = []
        while not messages or not messages[-1]["done"]:
            messages.append(await socket.receive_json())
    audio = b"".join(base64.b64decode(m["data"]) for m in messages if m["type"] == "chunk")

    assert audio.startswith(wanted[encoding])


async def test_a_cancelled_context_says_nothing_more(
    stand_ins: StandInProviders, http: aiohttp.ClientSession
) -> None:
    stand_ins.services["tts"].delay.ms = 300
    async with http.ws_connect(f"{stand_ins.url}/tts/websocket") as socket:
        await socket.send_json({"context_id": "a", "transcript": "Yes.", "continue": True})
        await socket.send_json({"context_id": "a", "cancel": True})
        await socket.send_json({"context_id": "b", "transcript": "No."})
        messages: list[dict[str, Any]] = []
        while not messages or not messages[-1]["done"]:
            messages.append(await socket.receive_json())

    assert {m["context_id"] for m in messages if m["type"] == "chunk"} == {"b"}


def test_mu_law_is_what_telephones_expand() -> None:
    assert mu_law(np.array([0, 32767, -32768], np.int16)) == bytes([0xFF, 0x80, 0x00])


def test_delays_spread_alike_from_the_same_seed() -> None:
    def delays(spread: float) -> list[float]:
        behavior = StandInProviders().services["llm"]
        behavior.delay.spread = spread
        return [behavior.delay.seconds() for _ in range(5)]

    assert delays(0.0) == [0.35] * 5
    assert delays(0.4) == delays(0.4)
    assert len(set(delays(0.4))) == 5


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="refuse, hang, cut"):
        StandInProviders().fault("llm", "explode")
