"""LiveKit's SIP API, as the worker and `lk` call it: tokens checked, requests logged."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from google.protobuf.message import Message
from livekit import api
from livekit.api.access_token import Claims
from livekit.protocol import sip

from simulator.bridge import Bridge
from simulator.trunks import Trunks
from simulator.twirp import TwirpError, decode, encode

_CALLS = ("CreateSIPParticipant", "TransferSIPParticipant")


@dataclass
class SipRequest:
    """One request: monotonic times, and how it was answered (`code` is empty for success)."""

    method: str
    message: Message
    at: float
    answered_at: float | None = None
    code: str = ""
    sip_status: int | None = None


class SipApi:
    """The endpoint `/twirp/livekit.SIP/*`; `requests` are those whose token and body were good."""

    def __init__(self, trunks: Trunks, bridge: Bridge, key: str, secret: str) -> None:
        self.requests: list[SipRequest] = []
        self._verifier = api.TokenVerifier(key, secret)
        self._methods: dict[str, Callable[..., Message | Awaitable[Message]]] = {
            name: getattr(trunks, name) for name in dir(trunks) if "SIP" in name
        }
        self._methods["CreateSIPParticipant"] = bridge.dial
        self._methods["TransferSIPParticipant"] = bridge.transfer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["method"]
        try:
            claims = self._claims(request)
            method = self._methods.get(name)
            if method is None:
                raise TwirpError("bad_route", f"no handler for path {request.path}")
            message = decode(
                await request.read(), request.content_type, getattr(sip, f"{name}Request")
            )
            _check(claims, name, message)
            answer = await self._answer(name, method, message)
        except TwirpError as error:
            return error.response()
        return encode(answer, request.content_type)

    async def _answer(
        self, name: str, method: Callable[..., Message | Awaitable[Message]], message: Message
    ) -> Message:
        entry = SipRequest(name, message, time.monotonic())
        self.requests.append(entry)
        try:
            answer = method(message)
            return await answer if inspect.isawaitable(answer) else answer
        except TwirpError as error:
            entry.code = error.code
            status = error.meta.get("sip_status_code")
            entry.sip_status = int(status) if status else None
            raise
        finally:
            entry.answered_at = time.monotonic()

    def _claims(self, request: web.Request) -> Claims:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise TwirpError("unauthenticated", "permissions denied")
        try:
            return self._verifier.verify(token)
        except Exception:  # PyJWT has a dozen, and each means that this is no token
            raise web.HTTPUnauthorized(text="invalid token") from None


def _check(claims: Claims, name: str, message: Message) -> None:
    grants = claims.sip
    allowed = bool(grants and (grants.call if name in _CALLS else grants.admin))
    if name == "TransferSIPParticipant":
        room = message.room_name  # type: ignore[attr-defined]
        video = claims.video
        allowed = allowed and bool(video and video.room_admin and video.room == room)
    if not allowed:
        raise TwirpError("unauthenticated", "permissions denied")
