"""LiveKit's SIP API, as stood in for: saved trunks and rules, tokens, JSON."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from livekit import api

from simulator.network import PhoneNetwork
from tests.phones import MINE, NUMBER, livekit, network, trunk

__all__ = ["livekit", "network", "trunk"]  # fixtures


async def test_trunks_and_rules_are_saved_listed_changed_and_deleted(
    livekit: api.LiveKitAPI, trunk: str
) -> None:
    sip = livekit.sip
    inbound = await sip.create_inbound_trunk(
        api.CreateSIPInboundTrunkRequest(trunk=api.SIPInboundTrunkInfo(name="in", numbers=[MINE]))
    )
    rule = await sip.create_dispatch_rule(
        api.CreateSIPDispatchRuleRequest(
            name="all",
            trunk_ids=[inbound.sip_trunk_id],
            rule=api.SIPDispatchRule(
                dispatch_rule_individual=api.SIPDispatchRuleIndividual(room_prefix="call")
            ),
        )
    )
    changed = await sip.update_inbound_trunk_fields(
        inbound.sip_trunk_id, name="new", numbers=[MINE, NUMBER]
    )
    renamed = await sip.update_dispatch_rule_fields(rule.sip_dispatch_rule_id, name="some")
    listed = await sip.list_inbound_trunk(api.ListSIPInboundTrunkRequest(numbers=[NUMBER]))
    other = await sip.list_inbound_trunk(api.ListSIPInboundTrunkRequest(numbers=["+15550177777"]))
    outbound = await sip.list_outbound_trunk(
        api.ListSIPOutboundTrunkRequest(trunk_ids=["ST_gone", trunk])
    )
    rules = await sip.list_dispatch_rule(
        api.ListSIPDispatchRuleRequest(trunk_ids=[inbound.sip_trunk_id])
    )

    assert (changed.name, list(changed.numbers)) == ("new", [MINE, NUMBER])
    assert (renamed.name, list(renamed.trunk_ids)) == ("some", [inbound.sip_trunk_id])
    assert list(listed.items) == [changed] and not other.items
    assert [item.sip_trunk_id for item in outbound.items] == ["", trunk]
    assert list(rules.items) == [renamed]

    await sip.delete_trunk(api.DeleteSIPTrunkRequest(sip_trunk_id=trunk))
    await sip.delete_dispatch_rule(
        api.DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=rule.sip_dispatch_rule_id)
    )
    with pytest.raises(api.ServerError, match="trunk does not exist") as gone:
        await sip.delete_trunk(api.DeleteSIPTrunkRequest(sip_trunk_id=trunk))

    assert gone.value.code == "not_found"
    assert not (await sip.list_outbound_trunk(api.ListSIPOutboundTrunkRequest())).items
    assert not (await sip.list_dispatch_rule(api.ListSIPDispatchRuleRequest())).items


async def test_unusable_trunks_and_conflicts_are_refused(livekit: api.LiveKitAPI) -> None:
    sip = livekit.sip
    trunk = api.CreateSIPInboundTrunkRequest(trunk=api.SIPInboundTrunkInfo(numbers=[MINE]))
    await sip.create_inbound_trunk(trunk)
    bad_out = api.CreateSIPOutboundTrunkRequest(trunk=api.SIPOutboundTrunkInfo(address="a.test"))

    for refused in (sip.create_inbound_trunk(trunk), sip.create_outbound_trunk(bad_out)):
        with pytest.raises(api.ServerError) as raised:
            await refused
        assert raised.value.code == "invalid_argument"


async def test_json_is_understood_and_tokens_are_checked(network: PhoneNetwork, trunk: str) -> None:
    secret = network.livekit.secret
    base = network.url.replace("ws", "http")

    async def post(token: str | None, method: str, body: dict[str, Any]) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"{base}/twirp/livekit.SIP/{method}"
        async with aiohttp.ClientSession() as http:
            answer = await http.post(url, headers=headers, json=body)
            is_json = answer.content_type == "application/json"
            return answer.status, await (answer.json() if is_json else answer.text())

    def token(key_secret: str = secret, **grants: bool) -> str:
        made = api.AccessToken(network.livekit.key, key_secret)
        return made.with_sip_grants(api.SIPGrants(**grants)).to_jwt()

    listed = await post(token(admin=True), "ListSIPOutboundTrunk", {"trunkIds": [trunk]})
    dialled = await post(token(call=True), "CreateSIPParticipant", {"sip_trunk_id": "ST_x"})
    refusals = [
        await post(None, "ListSIPOutboundTrunk", {}),
        await post(token(call=True), "ListSIPOutboundTrunk", {}),
        await post(token(admin=True), "CreateSIPParticipant", {}),
    ]

    assert listed[0] == 200 and listed[1]["items"][0]["sip_trunk_id"] == trunk
    assert (dialled[0], dialled[1]["code"]) == (404, "not_found")
    assert [(status, body["code"]) for status, body in refusals] == [(401, "unauthenticated")] * 3
    forged = token("another secret, long enough to be one", admin=True)
    assert await post(forged, "ListSIPOutboundTrunk", {}) == (401, "invalid token")
    assert (await post(token(admin=True), "NoSuchThing", {}))[0] == 404
