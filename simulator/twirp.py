"""Twirp, the protocol of LiveKit's API: bodies in and out, and errors with the bridge's wording."""

from __future__ import annotations

from http import HTTPStatus
from typing import TypeVar

from aiohttp import web
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

M = TypeVar("M", bound=Message)

# SIP status -> twirp code: livekit/protocol sip.go, as measured for 404, 480, 486, 500, 503, 603.
_CODES = {
    "invalid_argument": (400, 405, 488),
    "permission_denied": (401, 403, 407, 603, 607, 608),
    "not_found": (404, 410, 604),
    "deadline_exceeded": (408, 504),
    "resource_exhausted": (480, 486, 600),
    "aborted": (487,),
    "failed_precondition": (500, 502, 503),
}
_SIP_CODES = {status: code for code, statuses in _CODES.items() for status in statuses}
_HTTP = {
    "canceled": 408,
    "invalid_argument": 400,
    "malformed": 400,
    "deadline_exceeded": 408,
    "not_found": 404,
    "bad_route": 404,
    "permission_denied": 403,
    "unauthenticated": 401,
    "resource_exhausted": 429,
    "failed_precondition": 412,
    "aborted": 409,
    "unimplemented": 501,
    "unavailable": 503,
}
_PHRASES = {
    480: "Temporarily Unavailable",
    486: "Busy Here",
    487: "Request Terminated",
    488: "Not Acceptable Here",
    600: "Busy Everywhere",
    603: "Decline",
    604: "Does Not Exist Anywhere",
    607: "Unwanted",
    608: "Rejected",
}


class TwirpError(Exception):
    """A refusal, as LiveKit's API puts it on the wire."""

    def __init__(self, code: str, message: str, meta: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.meta = meta or {}
        self.http_status = _HTTP[code]

    def response(self) -> web.Response:
        body: dict[str, object] = {"code": self.code, "msg": self.message}
        if self.meta:
            body["meta"] = self.meta
        return web.json_response(body, status=self.http_status)


def sip_error(status: int, what: str = "INVITE failed") -> TwirpError:
    """A SIP status from the other side; its meta is what makes clients raise SipCallError."""
    phrase = _PHRASES.get(status)
    if phrase is None:
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    return TwirpError(
        _SIP_CODES.get(status, "invalid_argument"),
        f"{what}: sip status: {status}: {phrase}",
        {"sip_status_code": str(status), "sip_status": phrase},
    )


def decode(body: bytes, content_type: str, kind: type[M]) -> M:
    """A request's body, protobuf or JSON."""
    try:
        if content_type == "application/json":
            return json_format.Parse(body or b"{}", kind(), ignore_unknown_fields=True)
        if content_type == "application/protobuf":
            return kind.FromString(body)
    except (DecodeError, json_format.ParseError) as error:
        raise TwirpError("malformed", f"the request could not be decoded: {error}") from None
    raise TwirpError("bad_route", f'unexpected Content-Type: "{content_type}"')


def encode(message: Message, content_type: str) -> web.Response:
    """A response in the request's own encoding."""
    if content_type == "application/json":
        text = json_format.MessageToJson(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return web.Response(text=text, content_type=content_type)
    return web.Response(body=message.SerializeToString(), content_type=content_type)
