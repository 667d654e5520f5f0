"""Check settings, keys, LiveKit, trunk and providers, a line each: `./task check`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import aiohttp
from livekit import api
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import schema
from config import BadSetting, Settings

TIMEOUT_S = 8.0


class Wrong(Exception):
    """A check failed; the message says what is wrong and how to mend it."""


async def livekit(s: Settings) -> str:
    _need(s.livekit_url, "LIVEKIT_URL", "the wss:// URL of your project or server")
    _need(s.livekit_api_key and s.livekit_api_secret, "LIVEKIT_API_KEY and LIVEKIT_API_SECRET")
    async with _api(s) as client:
        await client.room.list_rooms(api.ListRoomsRequest())
    return f"{s.livekit_url} accepts the key"


async def inbound(s: Settings) -> str:
    async with _api(s) as client:
        trunks = await client.sip.list_inbound_trunk(api.ListSIPInboundTrunkRequest())
        rules = await client.sip.list_dispatch_rule(api.ListSIPDispatchRuleRequest())
    ours = [
        rule
        for rule in rules.items
        if any(agent.agent_name == s.agent_name for agent in rule.room_config.agents)
    ]
    if not trunks.items or not ours:
        raise Wrong(
            f"{len(trunks.items)} inbound trunk(s), {len(ours)} dispatch rule(s) for "
            f"{s.agent_name}: make both as the README says, or no call comes in"
        )
    slow = [t.name or t.sip_trunk_id for t in trunks.items if not t.ringing_timeout.seconds]
    if slow:
        raise Wrong(
            f"trunk {slow[0]} has no ringing_timeout: refused callers hear 3 min of ringing"
        )
    return f"{len(trunks.items)} trunk(s), {len(ours)} rule(s) for {s.agent_name}"


async def outbound(s: Settings) -> str:
    _need(s.sip_outbound_trunk_id, "SIP_OUTBOUND_TRUNK_ID", "only needed to place calls")
    async with _api(s) as client:
        trunks = await client.sip.list_outbound_trunk(api.ListSIPOutboundTrunkRequest())
    if s.sip_outbound_trunk_id not in [t.sip_trunk_id for t in trunks.items]:
        raise Wrong("SIP_OUTBOUND_TRUNK_ID names no trunk of this project: `lk sip outbound list`")
    return f"trunk {s.sip_outbound_trunk_id}"


async def model(s: Settings) -> str:
    _need(s.openai_api_key, "OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {s.openai_api_key}"}
    body = {
        "model": s.openai_model,
        "max_completion_tokens": 16,
        "messages": [{"role": "user", "content": "Say yes."}],
    }
    await _ask("POST", f"{s.openai_base_url}/chat/completions", "OPENAI", headers, body)
    return f"{s.openai_model} answers"


async def speech_to_text(s: Settings) -> str:
    _need(s.deepgram_api_key, "DEEPGRAM_API_KEY")
    url = s.deepgram_base_url.rsplit("/", 1)[0] + "/projects"
    await _ask("GET", url, "DEEPGRAM", {"Authorization": f"Token {s.deepgram_api_key}"})
    return f"{s.deepgram_model}: the key is accepted"


async def voice(s: Settings) -> str:
    _need(s.cartesia_api_key, "CARTESIA_API_KEY")
    headers = {"X-API-Key": s.cartesia_api_key, "Cartesia-Version": "2025-04-16"}
    await _ask("GET", f"{s.cartesia_base_url}/voices/{s.cartesia_voice}", "CARTESIA", headers)
    return f"{s.cartesia_model}, voice {s.cartesia_voice}"


async def database(s: Settings) -> str:
    def ask() -> str:
        s.data_dir.mkdir(parents=True, exist_ok=True)
        engine = schema.connect(s.records_url)
        with engine.connect() as connection:
            connection.execute(text("select 1"))
        return engine.dialect.name

    try:
        return await asyncio.to_thread(ask)
    except SQLAlchemyError as error:
        raise Wrong(f"DATABASE_URL or DATA_DIR: {type(error).__name__}") from None


CHECKS: dict[str, Callable[[Settings], Awaitable[str]]] = {
    "LiveKit": livekit,
    "inbound calls": inbound,
    "outbound calls": outbound,
    "model": model,
    "speech to text": speech_to_text,
    "voice": voice,
    "records": database,
}


def _api(s: Settings) -> api.LiveKitAPI:
    if not (s.livekit_url and s.livekit_api_key and s.livekit_api_secret):
        raise Wrong("set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET first")
    return api.LiveKitAPI(s.livekit_url, s.livekit_api_key, s.livekit_api_secret)


def _need(value: str, name: str, hint: str = "") -> None:
    if not value:
        raise Wrong(f"{name} is not set: put it into .env.local{f' ({hint})' if hint else ''}")


async def _ask(
    method: str, url: str, provider: str, headers: dict[str, str], body: object = None
) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers, json=body) as response,
    ):
        if response.status in (401, 403):
            raise Wrong(f"{provider}_API_KEY is refused ({response.status})")
        if response.status >= 400:
            raise Wrong(f"{url} answers {response.status}: check {provider}_BASE_URL and _MODEL")


async def check(settings: Settings, name: str) -> bool:
    """Run one check and print its line; whether it passed."""
    try:
        finding = await asyncio.wait_for(CHECKS[name](settings), TIMEOUT_S)
    except Wrong as wrong:
        print(f"✗ {name}: {wrong}")
    except api.ServerError as error:
        print(f"✗ {name}: LiveKit answers {error.code}: check the API key and secret")
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        print(f"✗ {name}: can't be reached ({type(error).__name__}): check its URL and the network")
    else:
        print(f"✓ {name}: {finding}")
        return True
    return False


async def run(settings: Settings) -> int:
    results = [await check(settings, name) for name in CHECKS]
    return 0 if all(results) else 1


def main() -> int:
    try:
        settings = Settings.load()
    except BadSetting as error:
        print(f"✗ settings: {error}")
        return 1
    print("✓ settings: all can be read")
    return asyncio.run(run(settings))


if __name__ == "__main__":
    sys.exit(main())
