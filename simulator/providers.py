"""Stand-ins for Deepgram, OpenAI and Cartesia that speak their wire formats on this machine.

The worker's real plugins are pointed here by their base URLs. The speech-to-text knows only what
the simulator's callers announced; the model follows the rules in `model.py`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import time
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from aiohttp import web

from simulator import speech
from simulator.ear import Ear
from simulator.faults import Behavior, Delay, hang
from simulator.model import ToolCall, reply, stems
from simulator.recognizer import Recognizer
from simulator.voicing import Voicing

logger = logging.getLogger(__name__)

_WORD_S = 0.008
"""Between two words of a streamed reply: about 120 words a second."""
_CUT_AFTER_WORDS = 5


@dataclass(frozen=True)
class Entry:
    """Something a stand-in did: monotonic time, stt, llm or tts, and the words."""

    at: float
    service: str
    what: str


class StandInProviders:
    """`await start()`, then `env()` points a worker here; `log` has all that was said."""

    def __init__(self) -> None:
        self.caller_ear = Ear()
        self.agent_ear = Ear()
        self.log: list[Entry] = []
        self.services = {
            "stt": Behavior(Delay(250)),
            "llm": Behavior(Delay(350)),
            "tts": Behavior(Delay(130)),
        }
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def env(self) -> dict[str, str]:
        """The settings that point a worker here."""
        return {
            "OPENAI_API_KEY": "stand-in",
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "DEEPGRAM_API_KEY": "stand-in",
            "DEEPGRAM_BASE_URL": f"{self.url}/v1/listen",
            "CARTESIA_API_KEY": "stand-in",
            "CARTESIA_BASE_URL": self.url,
            "MEMORY_MODEL": "",
            "EMBEDDING_MODEL": "",
        }

    def announce(self, text: str, voice: str) -> np.ndarray:
        """What a phone is about to say, at 16 kHz; from now on it is recognised."""
        for piece, _ in speech.parts(text):
            self.caller_ear.learn(piece, speech.synthesize(piece, voice=voice))
        return speech.synthesize(text, voice=voice)

    def fault(self, service: str, kind: str, times: int = 1) -> None:
        """Let the next requests to `stt`, `llm` or `tts` fail, see `Behavior.fail`."""
        self.services[service].fail(kind, times)

    def clear_faults(self) -> None:
        for behavior in self.services.values():
            behavior.faults.clear()

    def note(self, service: str, what: str) -> None:
        logger.info("%s %s", service, what)
        self.log.append(Entry(time.monotonic(), service, what))

    async def start(self) -> None:
        await asyncio.to_thread(speech.load)
        app = web.Application(client_max_size=1 << 26)
        app.add_routes(
            [
                web.get("/v1/models", _models),
                web.get("/v1/projects", _models),
                web.get("/voices/{voice}", _models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/embeddings", _embeddings),
                web.get("/v1/listen", self._listen),
                web.get("/tts/websocket", self._speak),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._port:
            await self._runner.cleanup()

    # The model

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        behavior = self.services["llm"]
        fault = behavior.next_fault()
        if fault == "refuse":
            return web.json_response({"error": {"message": "overloaded"}}, status=503)
        if fault == "hang":
            await hang()
        answer = "" if fault == "empty" else reply(body)
        self.note("llm", answer if isinstance(answer, str) else f"→ {answer.name}")
        if not body.get("stream"):
            return web.json_response(_completion(answer))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        with contextlib.suppress(ConnectionResetError):  # the caller spoke on: no longer wanted
            await self._stream(request, response, answer, fault)
        return response

    async def _stream(
        self,
        request: web.Request,
        response: web.StreamResponse,
        answer: str | ToolCall,
        fault: str,
    ) -> None:
        behavior = self.services["llm"]
        await response.prepare(request)
        await asyncio.sleep(behavior.delay.seconds())
        for count, delta in enumerate(_deltas(answer)):
            if fault == "cut" and count == _CUT_AFTER_WORDS and request.transport:
                request.transport.close()
                return
            await response.write(_event(delta))
            await asyncio.sleep(_WORD_S)
        finish = "tool_calls" if isinstance(answer, ToolCall) else "stop"
        await response.write(_event({}, finish, usage=_USAGE))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()

    # Speech to text

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        behavior = self.services["stt"]
        fault = behavior.next_fault("refuse", "hang")
        if fault == "refuse":
            return web.Response(status=503)
        if fault == "hang":
            await hang()
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        rate = int(request.query.get("sample_rate", speech.RATE))
        await Recognizer(socket, self.caller_ear, rate, behavior, self.note).run()
        return socket

    # Text to speech

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        behavior = self.services["tts"]
        if behavior.next_fault("refuse"):
            return web.Response(status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await Voicing(socket, self.agent_ear, behavior, self.note).run()
        return socket


_USAGE = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}


def _deltas(answer: str | ToolCall) -> list[dict[str, Any]]:
    if isinstance(answer, str):
        words = answer.split(" ")
        return [
            {"role": "assistant", "content": word if i == len(words) - 1 else f"{word} "}
            for i, word in enumerate(words)
        ]
    return [{"role": "assistant", "tool_calls": [_tool_call(answer) | {"index": 0}]}]


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": f"call_{time.time_ns()}", "type": "function", "function": function}


def _event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {
        "id": "chatcmpl-stand-in",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": "stand-in",
        "choices": [choice],
        **more,
    }
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _completion(answer: str | ToolCall) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    if isinstance(answer, str):
        message["content"] = answer
    else:
        message["tool_calls"] = [_tool_call(answer)]
    finish = "stop" if isinstance(answer, str) else "tool_calls"
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {
        "id": "chatcmpl-stand-in",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": "stand-in",
        "choices": [choice],
        "usage": _USAGE,
    }


async def _models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [], "projects": []})


async def _embeddings(request: web.Request) -> web.Response:
    body = await request.json()
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    size = int(body.get("dimensions") or 1536)
    data = []
    for index, text in enumerate(texts):
        vector = _embedding(text, size)
        value: Any = vector.tolist()
        if body.get("encoding_format") == "base64":
            value = base64.b64encode(vector.tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return web.json_response(
        {"object": "list", "data": data, "model": body["model"], "usage": usage}
    )


def _embedding(text: str, size: int) -> np.ndarray:
    """A hashed bag of stemmed words: alike where words are alike."""
    vector = np.zeros(size, np.float32)
    vector[0] = 1e-3
    for stem in stems(text):
        digest = int.from_bytes(blake2b(stem.encode(), digest_size=8).digest(), "little")
        vector[digest % size] += 1 if digest & 1 << 40 else -1
    return vector / np.linalg.norm(vector)
