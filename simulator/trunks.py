"""The saved SIP trunks and dispatch rules: LiveKit's create, list, get, update and delete."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import Message
from livekit.protocol import sip
from livekit.protocol.models import ListUpdate

from simulator.twirp import TwirpError

T = TypeVar("T", bound=Message)

NO_TRUNK = "requested sip trunk does not exist"
NO_RULE = "requested sip dispatch rule does not exist"


class Trunks:
    """One method for each of the API's, named as there."""

    def __init__(self) -> None:
        self.inbound: dict[str, sip.SIPInboundTrunkInfo] = {}
        self.outbound: dict[str, sip.SIPOutboundTrunkInfo] = {}
        self.rules: dict[str, sip.SIPDispatchRuleInfo] = {}

    # -- inbound trunks

    def CreateSIPInboundTrunk(self, r: sip.CreateSIPInboundTrunkRequest) -> Message:
        _require(r.HasField("trunk"), "missing trunk")
        _require(not r.trunk.sip_trunk_id, "trunk id must not be set")
        _check_inbound(r.trunk)
        for other in self.inbound.values():
            shared = set(other.numbers) & set(r.trunk.numbers)
            _require(
                not shared or bool(other.allowed_numbers or r.trunk.allowed_numbers),
                f'Conflicting inbound SIP Trunks: "<new>" and "{other.sip_trunk_id}", '
                f"using the same number(s) {sorted(shared)} without AllowedNumbers set",
            )
        r.trunk.sip_trunk_id = _new_id("ST_")
        self.inbound[r.trunk.sip_trunk_id] = r.trunk
        return r.trunk

    def ListSIPInboundTrunk(self, r: sip.ListSIPInboundTrunkRequest) -> Message:
        kept = [t for t in self.inbound.values() if _any_shared(t.numbers, r.numbers)]
        items = _by_ids(kept, "sip_trunk_id", r.trunk_ids, sip.SIPInboundTrunkInfo)
        return sip.ListSIPInboundTrunkResponse(items=_page(items, "sip_trunk_id", r))

    def GetSIPInboundTrunk(self, r: sip.GetSIPInboundTrunkRequest) -> Message:
        return sip.GetSIPInboundTrunkResponse(trunk=_found(self.inbound, r.sip_trunk_id, NO_TRUNK))

    def UpdateSIPInboundTrunk(self, r: sip.UpdateSIPInboundTrunkRequest) -> Message:
        trunk = _updated(_found(self.inbound, r.sip_trunk_id, NO_TRUNK), r)
        trunk.sip_trunk_id = r.sip_trunk_id
        _check_inbound(trunk)
        self.inbound[r.sip_trunk_id] = trunk
        return trunk

    # -- outbound trunks

    def CreateSIPOutboundTrunk(self, r: sip.CreateSIPOutboundTrunkRequest) -> Message:
        _require(r.HasField("trunk"), "missing trunk")
        _require(not r.trunk.sip_trunk_id, "trunk id must not be set")
        _check_outbound(r.trunk)
        r.trunk.sip_trunk_id = _new_id("ST_")
        self.outbound[r.trunk.sip_trunk_id] = r.trunk
        return r.trunk

    def ListSIPOutboundTrunk(self, r: sip.ListSIPOutboundTrunkRequest) -> Message:
        kept = [t for t in self.outbound.values() if _any_shared(t.numbers, r.numbers)]
        items = _by_ids(kept, "sip_trunk_id", r.trunk_ids, sip.SIPOutboundTrunkInfo)
        return sip.ListSIPOutboundTrunkResponse(items=_page(items, "sip_trunk_id", r))

    def GetSIPOutboundTrunk(self, r: sip.GetSIPOutboundTrunkRequest) -> Message:
        trunk = _found(self.outbound, r.sip_trunk_id, NO_TRUNK)
        return sip.GetSIPOutboundTrunkResponse(trunk=trunk)

    def UpdateSIPOutboundTrunk(self, r: sip.UpdateSIPOutboundTrunkRequest) -> Message:
        trunk = _updated(_found(self.outbound, r.sip_trunk_id, NO_TRUNK), r)
        trunk.sip_trunk_id = r.sip_trunk_id
        _check_outbound(trunk)
        self.outbound[r.sip_trunk_id] = trunk
        return trunk

    def DeleteSIPTrunk(self, r: sip.DeleteSIPTrunkRequest) -> Message:
        if not (self.inbound.pop(r.sip_trunk_id, None) or self.outbound.pop(r.sip_trunk_id, None)):
            raise TwirpError("not_found", NO_TRUNK)
        return sip.SIPTrunkInfo(sip_trunk_id=r.sip_trunk_id)

    # -- dispatch rules

    def CreateSIPDispatchRule(self, r: sip.CreateSIPDispatchRuleRequest) -> Message:
        rule = sip.SIPDispatchRuleInfo()
        if r.HasField("dispatch_rule"):
            rule.CopyFrom(r.dispatch_rule)
        else:  # the older, flat form of the request
            shared = sip.SIPDispatchRuleInfo.DESCRIPTOR.fields_by_name
            for field, value in r.ListFields():
                if field.name in shared:
                    _assign(rule, field.name, value)
        _require(rule.HasField("rule"), "missing rule")
        _require(not rule.sip_dispatch_rule_id, "rule id must not be set")
        for other in self.rules.values():
            same = set(other.trunk_ids or [""]) & set(rule.trunk_ids or [""])
            numbers = set(other.inbound_numbers or [""]) & set(rule.inbound_numbers or [""])
            _require(
                not (same and numbers),
                "Conflicting SIP Dispatch Rules: same Trunk+Number+PIN combination for for "
                f'"<new>" and "{other.sip_dispatch_rule_id}"',
            )
        rule.sip_dispatch_rule_id = _new_id("SDR_")
        self.rules[rule.sip_dispatch_rule_id] = rule
        return rule

    def ListSIPDispatchRule(self, r: sip.ListSIPDispatchRuleRequest) -> Message:
        kept = [rule for rule in self.rules.values() if _any_shared(rule.trunk_ids, r.trunk_ids)]
        key = "sip_dispatch_rule_id"
        items = _by_ids(kept, key, r.dispatch_rule_ids, sip.SIPDispatchRuleInfo)
        return sip.ListSIPDispatchRuleResponse(items=_page(items, key, r))

    def UpdateSIPDispatchRule(self, r: sip.UpdateSIPDispatchRuleRequest) -> Message:
        rule = _updated(_found(self.rules, r.sip_dispatch_rule_id, NO_RULE), r)
        rule.sip_dispatch_rule_id = r.sip_dispatch_rule_id
        self.rules[r.sip_dispatch_rule_id] = rule
        return rule

    def DeleteSIPDispatchRule(self, r: sip.DeleteSIPDispatchRuleRequest) -> Message:
        rule = _found(self.rules, r.sip_dispatch_rule_id, NO_RULE)
        del self.rules[r.sip_dispatch_rule_id]
        return rule


def _new_id(prefix: str) -> str:
    return prefix + secrets.token_urlsafe(9).replace("-", "x").replace("_", "y")


def _require(claim: bool, message: str) -> None:
    if not claim:
        raise TwirpError("invalid_argument", message)


def _check_inbound(trunk: sip.SIPInboundTrunkInfo) -> None:
    secured = trunk.auth_username or trunk.auth_password or trunk.allowed_addresses or trunk.numbers
    _require(
        bool(secured),
        "for security, one of the fields must be set: "
        "AuthUsername+AuthPassword, AllowedAddresses or Numbers",
    )


def _check_outbound(trunk: sip.SIPOutboundTrunkInfo) -> None:
    _require(bool(trunk.numbers), "no trunk numbers specified")
    _require(bool(trunk.address), "no outbound address specified")


def _found(items: dict[str, T], id_: str, message: str) -> T:
    if id_ not in items:
        raise TwirpError("not_found", message)
    return items[id_]


def _any_shared(have: Iterable[str], wanted: Iterable[str]) -> bool:
    """A list filter: an item without numbers (or trunks) stands for all of them."""
    some, others = set(have), set(wanted)
    return not some or not others or bool(some & others)


def _by_ids(items: list[T], key: str, ids: Iterable[str], kind: type[T]) -> list[T]:
    """Items in the order of `ids`, an empty one for each that is missing; all if there are none."""
    wanted = list(ids)
    if not wanted:
        return items
    known = {getattr(item, key): item for item in items}
    return [known.get(id_, kind()) for id_ in wanted]


def _page(items: list[T], key: str, request: Message) -> list[T]:
    page = request.page  # type: ignore[attr-defined]
    if page.after_id:
        items = [item for item in items if getattr(item, key) > page.after_id]
    if page.after_id or page.limit:
        items = sorted(items, key=lambda item: str(getattr(item, key)))
    return items[: page.limit] if page.limit else items


def _updated(item: T, request: Message) -> T:
    """`item` replaced or changed as an Update request says."""
    if request.WhichOneof("action") == "replace":
        return request.replace  # type: ignore[attr-defined,no-any-return]
    _require(request.WhichOneof("action") == "update", "missing or unsupported update action")
    changed = type(item)()
    changed.CopyFrom(item)
    for field, value in request.update.ListFields():  # type: ignore[attr-defined]
        if isinstance(value, ListUpdate):
            current = list(getattr(changed, field.name))
            kept = [] if value.clear or value.set else current
            kept = [x for x in [*kept, *value.set, *value.add] if x not in value.remove]
            changed.ClearField(field.name)
            getattr(changed, field.name).extend(dict.fromkeys(kept))
        else:
            _assign(changed, field.name, value)
    return changed


def _assign(message: Message, name: str, value: object) -> None:
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.message_type and field.message_type.GetOptions().map_entry:
        getattr(message, name).update(value)
    elif isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif hasattr(value, "extend"):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)
