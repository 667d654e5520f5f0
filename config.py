"""Settings: the only reader of the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from call import transfer_uri


class BadSetting(Exception):
    """A setting can't be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Settings:
    """Every setting; its environment name is its name in capitals, explained in `.env.example`."""

    livekit_url: str = ""
    livekit_api_key: str = ""
    livekit_api_secret: str = field(default="", repr=False)
    agent_name: str = "customer-support"

    sip_outbound_trunk_id: str = ""
    ring_timeout_s: float = 30.0
    transfer_destinations: Mapping[str, str] = field(default_factory=dict)
    transfer_timeout_s: float = 20.0

    company_name: str = "Larkfield Home"
    voicemail_message: str = ""

    openai_api_key: str = field(default="", repr=False)
    openai_base_url: str = "https://api.openai.com/v1"
    openai_model: str = "gpt-4.1-mini"
    memory_model: str = "gpt-4.1-mini"
    embedding_model: str = "text-embedding-3-small"
    deepgram_api_key: str = field(default="", repr=False)
    deepgram_base_url: str = "https://api.deepgram.com/v1/listen"
    deepgram_model: str = "nova-3"
    cartesia_api_key: str = field(default="", repr=False)
    cartesia_base_url: str = "https://api.cartesia.ai"
    cartesia_model: str = "sonic-3"
    cartesia_voice: str = "f786b574-daa5-4673-aa0c-cbe3e8534c02"
    language: str = "en"
    model_timeout_s: float = 1.8

    turn_detection: str = "v1-mini"
    vad: str = "bundled"
    noise_cancellation: str = "off"
    min_endpointing_delay_s: float = 0.25
    max_endpointing_delay_s: float = 1.2
    interruption_min_s: float = 0.3

    max_calls: int = 8
    max_call_s: float = 1800.0
    silence_limit_s: float = 30.0
    drain_timeout_s: float = 600.0
    health_host: str = "127.0.0.1"
    health_port: int = 8081
    log_level: str = "INFO"

    data_dir: Path = Path("data")
    database_url: str = ""
    store_transcripts: bool = False
    knowledge_dir: Path = Path("knowledge")
    qdrant_url: str = ""
    qdrant_api_key: str = field(default="", repr=False)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from `environ`; by default the process's, over `.env.local`, over `.env`.

        Raises BadSetting, naming the first one that can't be used.
        """
        if environ is None:
            files: dict[str, str | None] = {}
            if os.environ.get("IGNORE_ENV_FILES") != "1":
                files = dotenv_values(".env") | dotenv_values(".env.local")
            environ = {k: v for k, v in files.items() if v is not None} | dict(os.environ)
        given = {
            f.name: _parse(f.name.upper(), environ[f.name.upper()], cls.__annotations__[f.name])
            for f in fields(cls)
            if f.name.upper() in environ
        }
        return cls(**given)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadSetting(f"{name.upper()}: must be one of {', '.join(choices)}")
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise BadSetting(f"{f.name.upper()}: must be more than 0")
        if self.min_endpointing_delay_s > self.max_endpointing_delay_s:
            raise BadSetting("MAX_ENDPOINTING_DELAY_S: must not be below MIN_ENDPOINTING_DELAY_S")

    @property
    def records_url(self) -> str:
        """SQLAlchemy URL of the records database."""
        return self.database_url or f"sqlite:///{self.data_dir / 'records.db'}"

    @property
    def has_embeddings(self) -> bool:
        return bool(self.openai_api_key and self.embedding_model)

    @property
    def has_memory_model(self) -> bool:
        return bool(self.openai_api_key and self.memory_model)


_BOOLS = {"true": True, "1": True, "false": False, "0": False, "": False}

_CHOICES = {
    "turn_detection": ("v1-mini", "v1", "multilingual"),
    "vad": ("bundled", "silero"),
    "noise_cancellation": ("off", "telephony"),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
}


def _parse(name: str, text: str, kind: str) -> Any:
    text = text.strip()
    try:
        match kind:
            case "bool":
                return _BOOLS[text.lower()]
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "Path":
                return Path(text)
            case "Mapping[str, str]":
                return _pairs(text)
    except (ValueError, KeyError) as error:
        wanted = {"bool": "true or false", "int": "a whole number", "float": "a number"}
        raise BadSetting(f"{name}: must be {wanted.get(kind, str(error))}") from None
    return text


def _pairs(text: str) -> dict[str, str]:
    """`billing=+15550100, supervisor=sip:desk@host` as a mapping."""
    pairs = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, destination = (part.strip() for part in item.partition("="))
        if not (name and equals):
            raise ValueError("pairs like billing=+15551230001, separated by commas")
        try:
            transfer_uri(destination)
        except ValueError as error:
            raise ValueError(f"pairs like billing=+15551230001: {name} is {error}") from None
        pairs[name] = destination
    return pairs
