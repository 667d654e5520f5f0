"""Which room an incoming call goes to, as whom, and which agents are called to it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration
from livekit import api
from livekit.protocol.agent_dispatch import RoomAgentDispatch
from livekit.protocol.room import RoomConfiguration
from livekit.protocol.sip import SIPDispatchRuleInfo, SIPInboundTrunkInfo

from simulator.phone import Phone
from simulator.trunks import Trunks

HOSTNAME = "carrier.test"
DEFAULT_RINGING_S = 180.0


@dataclass(frozen=True)
class Route:
    """What a trunk and its dispatch rule say about one incoming call."""

    room_config: RoomConfiguration
    room_prefix: str = "call"
    room_name: str = ""
    trunk_id: str = "ST_inbound"
    rule_id: str = "SDR_inbound"
    metadata: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    hides_number: bool = False
    ringing_s: float = DEFAULT_RINGING_S
    max_call_s: float = 0.0

    def admit(
        self,
        new_token: Callable[[str, str], api.AccessToken],
        phone: Phone,
        to: str,
        *,
        room: str | None = None,
        is_withheld: bool = False,
    ) -> api.AccessToken:
        """The caller's token: `new_token(room, identity)` with name, attributes and dispatch."""
        is_hidden = is_withheld or self.hides_number
        shown = phone.number[-4:] if is_hidden else phone.number
        identity = phone.number
        attributes = {
            **self.attributes,
            "sip.callID": phone.call_id,
            "sip.callIDFull": secrets.token_hex(16),
            "sip.callTag": secrets.token_hex(4),
            "sip.callStatus": "ringing",
            "sip.trunkID": self.trunk_id,
            "sip.ruleID": self.rule_id,
        }
        if is_hidden:
            identity = hashlib.sha256(phone.number.encode()).hexdigest()[:16]
        else:
            attributes["sip.phoneNumber"] = phone.number
            attributes["sip.trunkPhoneNumber"] = to
            attributes["sip.hostname"] = HOSTNAME
        name = room or self.room_name or f"{self.room_prefix}_{shown}_{secrets.token_hex(6)}"
        return (
            new_token(name, f"sip_{identity}")
            .with_name(f"Phone {shown}")
            .with_metadata(self.metadata)
            .with_attributes(attributes)
            .with_room_config(self.room_config)
        )


def direct_route(agent_name: str, metadata: str) -> Route:
    """A call to one agent without any saved rule; nobody is called if the name is empty."""
    agents = [RoomAgentDispatch(agent_name=agent_name, metadata=metadata)] if agent_name else []
    return Route(RoomConfiguration(agents=agents))


def find_route(trunks: Trunks, *, called: str, calling: str) -> Route | None:
    """By the saved trunks and rules; None if the call would ring unheard."""
    for trunk in sorted(trunks.inbound.values(), key=lambda trunk: not trunk.numbers):
        if trunk.numbers and called not in trunk.numbers:
            continue
        if trunk.allowed_numbers and calling not in trunk.allowed_numbers:
            continue
        rules = [
            rule
            for rule in trunks.rules.values()
            if (not rule.trunk_ids or trunk.sip_trunk_id in rule.trunk_ids)
            and (not rule.inbound_numbers or calling in rule.inbound_numbers)
        ]
        if rules:
            best = min(rules, key=lambda rule: (not rule.trunk_ids, not rule.inbound_numbers))
            return _route(trunk, best, called)
    return None


def _route(trunk: SIPInboundTrunkInfo, rule: SIPDispatchRuleInfo, called: str) -> Route:
    kind = rule.rule.WhichOneof("rule")
    callee = rule.rule.dispatch_rule_callee
    names = {
        "dispatch_rule_direct": rule.rule.dispatch_rule_direct.room_name,
        "dispatch_rule_callee": "_".join(filter(None, [callee.room_prefix, called])),
    }
    return Route(
        room_config=rule.room_config,
        room_prefix=rule.rule.dispatch_rule_individual.room_prefix,
        room_name=names.get(kind or "", ""),
        trunk_id=trunk.sip_trunk_id,
        rule_id=rule.sip_dispatch_rule_id,
        metadata=rule.metadata,
        attributes=dict(rule.attributes),
        hides_number=rule.hide_phone_number,
        ringing_s=_seconds(trunk.ringing_timeout) or DEFAULT_RINGING_S,
        max_call_s=_seconds(trunk.max_call_duration),
    )


def _seconds(duration: Duration) -> float:
    return float(duration.seconds + duration.nanos / 1e9)
