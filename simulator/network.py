"""The stand-in phone network in front of a LiveKit server: numbers to dial and callers who ring.

The worker and every API client use `url` as LIVEKIT_URL: the SIP API is answered here, everything
else is passed on to the server. Phones join the server directly: no media passes through here.
"""

from __future__ import annotations

import asyncio
import secrets
import time

from aiohttp import web
from livekit.api import AccessToken, LiveKitAPI, VideoGrants
from livekit.protocol import sip
from livekit.protocol.agent_dispatch import CreateAgentDispatchRequest

from simulator.bridge import Bridge, Line, check_transfer
from simulator.handset import LineQuality, TelephoneLine
from simulator.livekit_server import LiveKitServer
from simulator.phone import Announce, Phone
from simulator.proxy import Proxy
from simulator.routing import HOSTNAME, Route, direct_route, find_route
from simulator.sip_api import SipApi, SipRequest
from simulator.speech import telephone_line
from simulator.trunks import Trunks

__all__ = ["Line", "LineQuality", "NotRouted", "Phone", "PhoneNetwork", "SipRequest"]


class NotRouted(Exception):
    """No trunk or rule takes this call: the real caller would hear ringing until they give up."""


class PhoneNetwork:
    """`await start()`; then dial in with `dial`, or say in `lines` what dialled numbers do.

    `calls` has every phone of both directions, as they were dialled; `line` is what all speech
    passes on its way in and out.
    """

    def __init__(
        self,
        livekit: LiveKitServer,
        port: int = 0,
        *,
        announce: Announce | None = None,
        line: TelephoneLine | None = telephone_line,
        agent_name: str = "customer-support",
    ) -> None:
        self.livekit = livekit
        self.port = port
        self.agent_name = agent_name
        self.lines: dict[str, Line] = {}
        self.calls: list[Phone] = []
        self.trunks = Trunks()
        self._announce = announce
        self.line = line
        self._bridge = Bridge(self.trunks, self.lines, self._dialled)
        self._sip: SipApi | None = None
        self._dialled_one = asyncio.Event()

    @property
    def url(self) -> str:
        """What the worker uses as LIVEKIT_URL."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[SipRequest]:
        """Every SIP request so far."""
        return self._sip.requests if self._sip else []

    @property
    def script_errors(self) -> list[BaseException]:
        """What `on_answer` scripts raised; `stop` raises the first."""
        return self._bridge.script_errors

    def api(self) -> LiveKitAPI:
        """A new API client, to be used as an async context manager."""
        return LiveKitAPI(self.url, self.livekit.key, self.livekit.secret)

    async def start(self) -> None:
        self._proxy = Proxy(self.livekit.http_url)
        self._sip = SipApi(self.trunks, self._bridge, self.livekit.key, self.livekit.secret)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/twirp/livekit.SIP/{method}", self._sip.handle)
        app.router.add_route("*", "/{path:.*}", self._proxy.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Hang everything up; raises the first error of a phone's `on_answer` script."""
        await asyncio.gather(*(phone.hang_up("network stopped") for phone in self.calls))
        await self._bridge.close()
        await self._runner.cleanup()
        await self._proxy.close()
        if self.script_errors:
            raise self.script_errors[0]

    # ------------------------------------------------------------------ outbound

    async def dispatch(
        self, metadata: str, agent_name: str | None = None, room: str | None = None
    ) -> str:
        """Ask for an agent in a new room, as `lk dispatch create --new-room`; returns its name."""
        room = room or f"room-{secrets.token_hex(6)}"
        async with self.api() as livekit:
            await livekit.agent_dispatch.create_dispatch(
                CreateAgentDispatchRequest(
                    room=room,
                    metadata=metadata,
                    agent_name=self.agent_name if agent_name is None else agent_name,
                )
            )
        return room

    async def dialled(self, number: str, *, timeout: float = 15.0, after: int = 0) -> Phone:
        """The phone with `number`, once it is dialled (`after`: from that index of `calls`)."""
        deadline = time.monotonic() + timeout
        while True:
            self._dialled_one.clear()
            for phone in self.calls[after:]:
                if phone.number == number and not phone.is_inbound:
                    return phone
            try:
                await asyncio.wait_for(self._dialled_one.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise TimeoutError(f"{number} was not dialled in {timeout:g} s") from None

    async def _dialled(
        self, r: sip.CreateSIPParticipantRequest, line: Line, trunk_id: str, caller_id: str
    ) -> Phone:
        phone = self._phone(r.sip_call_to, line.quality, line.voice)
        phone.trunk_id, phone.transfer, phone.transfer_s = trunk_id, line.transfer, line.transfer_s
        attributes = dict(r.participant_attributes) | {
            "sip.callID": phone.call_id,
            "sip.callStatus": "dialing",
        }
        if trunk_id:
            attributes["sip.trunkID"] = trunk_id
        if not r.hide_phone_number:
            attributes["sip.phoneNumber"] = r.sip_call_to
            attributes["sip.trunkPhoneNumber"] = caller_id
            attributes["sip.hostname"] = HOSTNAME
        token = (
            self._token(r.room_name, r.participant_identity or f"sip_{r.sip_call_to}")
            .with_name(r.participant_name or f"Phone {r.sip_call_to}")
            .with_metadata(r.participant_metadata)
            .with_attributes(attributes)
        )
        phone.status = "dialing"
        await phone.join(self.livekit.url, token.to_jwt(), listens=False)
        self._add(phone)
        return phone

    # ------------------------------------------------------------------ inbound

    async def dial(
        self,
        *,
        from_: str = "+15550100001",
        to: str = "+15550199999",
        agent_name: str | None = None,
        withheld: bool = False,
        metadata: str = "",
        room: str | None = None,
        attributes: dict[str, str] | None = None,
        ringing_timeout_s: float | None = None,
        transfer: str | int = "accept",
        transfer_s: float = 0.3,
        quality: LineQuality | None = None,
        voice: str = "caller",
    ) -> Phone:
        """A caller rings: returns the phone once it rings; it is answered when it hears a track.

        `agent_name`: None takes the saved dispatch rules if there are any, else `self.agent_name`;
        "" dispatches nobody. `metadata` is the job's. `withheld` is the rule's hide_phone_number:
        no number in the attributes, a hash of it as identity. Raises NotRouted.
        """
        check_transfer(transfer)
        route = self._route(to, from_, agent_name, metadata)
        phone = self._phone(from_, quality, voice)
        phone.is_inbound, phone.transfer, phone.transfer_s = True, transfer, transfer_s
        phone.trunk_id = route.trunk_id
        token = route.admit(self._token, phone, to, room=room, is_withheld=withheld)
        if attributes:
            token.claims.attributes = {**(token.claims.attributes or {}), **attributes}
        phone.status = "ringing"
        phone.times["ringing"] = time.monotonic()
        await phone.join(self.livekit.url, token.to_jwt(), listens=True)
        self._add(phone)
        limit = route.ringing_s if ringing_timeout_s is None else ringing_timeout_s
        self._bridge.ring_in(phone, limit, route.max_call_s)
        return phone

    def _route(self, to: str, from_: str, agent_name: str | None, metadata: str) -> Route:
        if agent_name is None and self.trunks.rules:
            route = find_route(self.trunks, called=to, calling=from_)
            if route is None:
                raise NotRouted(f"no inbound trunk and dispatch rule take a call to {to}")
            return route
        return direct_route(self.agent_name if agent_name is None else agent_name, metadata)

    # ------------------------------------------------------------------ inside

    def _token(self, room: str, identity: str) -> AccessToken:
        """Without the right to update its own metadata a phone's status would never change."""
        grants = VideoGrants(room_join=True, room=room, can_update_own_metadata=True)
        token = AccessToken(self.livekit.key, self.livekit.secret)
        return token.with_identity(identity).with_kind("sip").with_grants(grants)

    def _phone(self, number: str, quality: LineQuality | None, voice: str) -> Phone:
        phone = Phone(number, announce=self._announce, line=self.line, quality=quality, voice=voice)
        phone.call_id = f"SCL_{secrets.token_hex(6)}"
        return phone

    def _add(self, phone: Phone) -> None:
        self.calls.append(phone)
        self._dialled_one.set()
