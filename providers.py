"""Speech-to-text, model, voice and turn detection, as the settings choose them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from livekit import rtc
from livekit.agents import AgentSession, APIConnectOptions, inference
from livekit.agents.voice.agent_session import SessionConnectOptions
from livekit.agents.voice.room_io import AudioInputOptions, RoomOptions

from config import Settings


def load(settings: Settings) -> None:
    """Import and warm what the settings choose; main thread only (plugins refuse any other).

    Neither a call nor its greeting then waits for imports or model weights.
    """
    for name in _plugins(settings):
        importlib.import_module(f"livekit.plugins.{name}")
    importlib.import_module("livekit.agents.ipc._preload")
    importlib.import_module("openai.resources.chat")
    importlib.import_module("openai.resources.models")
    # LiveKit makes its native client at the first use and without a lock: of two calls that are
    # the first at the same time, one would make a second client and never hear of its room.
    rtc.AudioResampler(48_000, 16_000)


def _plugins(settings: Settings) -> list[str]:
    chosen = ["openai", "deepgram", "cartesia"]
    if settings.vad == "silero":
        chosen.append("silero")
    if settings.turn_detection == "multilingual":
        chosen.append("turn_detector.multilingual")
    if settings.noise_cancellation == "telephony":
        chosen.append("noise_cancellation")
    return chosen


def session(settings: Settings, userdata: Any) -> AgentSession:
    """The AgentSession a call is spoken in, without behaviours."""
    return AgentSession(
        stt=_stt(settings),
        llm=model(settings),
        tts=_tts(settings),
        vad=_vad(settings),
        turn_handling={
            "turn_detection": _turn_detection(settings),
            "endpointing": {
                "min_delay": settings.min_endpointing_delay_s,
                "max_delay": settings.max_endpointing_delay_s,
            },
            "interruption": {"mode": "vad", "min_duration": settings.interruption_min_s},
            "preemptive_generation": {"enabled": True},
        },
        userdata=userdata,
        max_tool_steps=4,
        user_away_timeout=None,
        aec_warmup_duration=None,  # the default mutes the caller for 3 s on inbound calls
        session_close_transcript_timeout=0.2,  # the default adds 2 s to every hang-up
        conn_options=SessionConnectOptions(
            max_unrecoverable_errors=sys.maxsize,  # behaviors.end_without_speech decides
            stt_conn_options=APIConnectOptions(max_retry=3, retry_interval=1.0, timeout=4),
            llm_conn_options=APIConnectOptions(max_retry=0, timeout=settings.model_timeout_s),
            tts_conn_options=APIConnectOptions(max_retry=2, retry_interval=1.0, timeout=2.5),
        ),
    )


def room_options(settings: Settings) -> RoomOptions:
    """Audio only: a phone neither types nor reads."""
    cancellation = None
    if settings.noise_cancellation == "telephony":
        plugin = importlib.import_module("livekit.plugins.noise_cancellation")
        cancellation = plugin.BVCTelephony()
    return RoomOptions(
        audio_input=AudioInputOptions(noise_cancellation=cancellation),
        text_input=False,
        text_output=False,
        close_on_disconnect=False,
        delete_room_on_close=False,
    )


def _stt(settings: Settings) -> Any:
    from livekit.plugins import deepgram  # noqa: PLC0415 loaded once, on the main thread

    return deepgram.STT(
        model=settings.deepgram_model,
        language=settings.language,
        api_key=settings.deepgram_api_key,
        base_url=settings.deepgram_base_url,
    )


def model(settings: Settings) -> Any:
    """The language model."""
    from livekit.plugins import openai  # noqa: PLC0415 loaded once, on the main thread

    return openai.LLM(
        model=settings.openai_model,
        api_key=settings.openai_api_key,
        base_url=settings.openai_base_url,
    )


def _tts(settings: Settings) -> Any:
    from livekit.plugins import cartesia  # noqa: PLC0415 loaded once, on the main thread

    return cartesia.TTS(
        model=settings.cartesia_model,
        voice=settings.cartesia_voice,
        language=settings.language,
        api_key=settings.cartesia_api_key,
        base_url=settings.cartesia_base_url,
    )


def _vad(settings: Settings) -> Any:
    if settings.vad == "silero":
        from livekit.plugins import silero  # noqa: PLC0415 only when chosen

        return silero.VAD.load()
    return inference.VAD(model="silero")


def _turn_detection(settings: Settings) -> Any:
    if settings.turn_detection == "multilingual":
        plugin = importlib.import_module("livekit.plugins.turn_detector.multilingual")
        return plugin.MultilingualModel()
    return inference.TurnDetector(version=settings.turn_detection)  # type: ignore[arg-type]
