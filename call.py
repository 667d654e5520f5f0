"""The words of one phone call: what it is, what was asked of us, and how it ended."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if sys.version_info >= (3, 11):
    from enum import StrEnum
else:
    from enum import Enum

    class StrEnum(str, Enum):
        __str__ = str.__str__


E164 = re.compile(r"\+[1-9]\d{6,14}")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
SIP_URI = re.compile(r"sips?:[^\s@]+@[^\s@]+")


class Direction(StrEnum):
    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Disposition(StrEnum):
    """How the call ended, as a closed set. `Ending.reason` says the rest."""

    COMPLETED = "completed"
    TRANSFERRED = "transferred"
    VOICEMAIL = "voicemail"
    NO_ANSWER = "no_answer"
    BUSY = "busy"
    DECLINED = "declined"
    BAD_NUMBER = "bad_number"
    UNREACHABLE = "unreachable"
    ABANDONED = "abandoned"
    SILENT = "silent"
    TIME_LIMIT = "time_limit"
    NOT_DIALED = "not_dialed"
    FAILED = "failed"


class EndedBy(StrEnum):
    CALLER = "caller"
    AGENT = "agent"
    SYSTEM = "system"


@dataclass(frozen=True)
class Ending:
    """How and why a call ended; `reason` holds no personal data."""

    disposition: Disposition
    ended_by: EndedBy
    reason: str = ""
    sip_status: int | None = None
    message_left: bool = False


class BadRequest(Exception):
    """The dispatch metadata can't be dialled; the message names the key and is safe to store."""


def transfer_uri(destination: str) -> str:
    """A number or SIP URI as the SIP bridge wants it (`tel:` or `sip:`); ValueError otherwise."""
    if E164.fullmatch(destination):
        return f"tel:{destination}"
    if SIP_URI.fullmatch(destination):
        return destination
    raise ValueError("neither an E.164 number (+15551230001) nor a SIP URI (sip:desk@host)")


@dataclass(frozen=True)
class DialRequest:
    """An outbound call as the dispatcher asked for it (the dispatch metadata, validated)."""

    phone_number: str
    call_id: str = ""
    name: str = ""
    purpose: str = ""
    script: str = ""
    trunk_id: str = ""
    caller_id: str = ""
    voicemail_message: str = ""
    timezone: str = ""
    campaign_id: str = ""
    contact_id: str = ""
    destinations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, metadata: str) -> DialRequest | None:
        """The request in `metadata`, or None for an inbound call.

        A call is inbound if the metadata is empty or a JSON object with none of our keys.
        Raises BadRequest, naming the key, if a call was asked for that can't be dialled.
        """
        if not metadata.strip():
            return None
        try:
            given = json.loads(metadata)
        except ValueError:
            raise BadRequest("metadata: not JSON") from None
        if not isinstance(given, dict):
            raise BadRequest("metadata: not a JSON object")
        if not _KEYS & given.keys():
            return None
        if unknown := sorted(given.keys() - _KEYS):
            raise BadRequest(f"{unknown[0][:40]}: unknown key")
        for key, value in given.items():
            if key != "destinations" and not isinstance(value, str):
                raise BadRequest(f"{key}: must be text")
            if _UNSTORABLE.search(str(value)):
                raise BadRequest(f"{key}: holds characters that can't be stored (NUL, surrogates)")
        return cls._checked(given)

    @classmethod
    def _checked(cls, given: dict[str, Any]) -> DialRequest:
        if not E164.fullmatch(given.get("phone_number", "")):
            raise BadRequest("phone_number: must be an E.164 number like +15551230001")
        if (caller_id := given.get("caller_id")) and not E164.fullmatch(caller_id):
            raise BadRequest("caller_id: must be an E.164 number like +15551230001")
        if timezone := given.get("timezone"):
            try:
                ZoneInfo(timezone)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise BadRequest("timezone: must be an IANA name like Europe/Berlin") from None
        fields = {key: value for key, value in given.items() if key in cls.__dataclass_fields__}
        return cls(**fields | {"destinations": _destinations(given)})


_KEYS = frozenset(DialRequest.__dataclass_fields__) | {"transfer_to"}


def _destinations(given: dict[str, Any]) -> dict[str, str]:
    """Named destinations; `transfer_to` is the one named `person`."""
    named = given.get("destinations", {})
    if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
        raise BadRequest("destinations: must map names to numbers or SIP URIs")
    if transfer_to := given.get("transfer_to"):
        named = {"person": transfer_to} | named
    for name, destination in named.items():
        key = "transfer_to" if destination == given.get("transfer_to") else "destinations"
        if not name.strip():
            raise BadRequest(f"{key}: a destination needs a name")
        try:
            transfer_uri(destination)
        except ValueError as error:
            raise BadRequest(f"{key}: {error}") from None
    return dict(named)


@dataclass
class Call:
    """One phone conversation, from dispatch to disposition; times are UTC."""

    id: str
    job_id: str
    room: str
    worker_id: str
    direction: Direction
    number: str | None = None
    """The other side's E.164 number; None if it is withheld."""
    dialed_number: str | None = None
    """Inbound: the number of ours that was dialled. Outbound: the caller id we showed."""
    request: DialRequest | None = None
    dispatched_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    ringing_at: datetime | None = None
    answered_at: datetime | None = None
    ended_at: datetime | None = None
    ending: Ending | None = None
    destination: str | None = None
    """The name of the destination the call was transferred to."""
    has_spoken: bool = False
    """Whether the person at the other end has said a word."""
    turns: int = 0
    interruptions: int = 0
    reply_ms: list[float] = field(default_factory=list)
    """Per turn, from the end of the caller's speech to the agent's first sound (ms)."""
    usage: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    learns: bool = True
    """False once the caller asked to be forgotten, or the number is withheld."""

    @property
    def is_inbound(self) -> bool:
        return self.direction is Direction.INBOUND

    def end(self, ending: Ending) -> None:
        """The first ending stands; later ones are its consequences."""
        if self.ending is None:
            self.ending = ending
            self.ended_at = datetime.now(timezone.utc)
