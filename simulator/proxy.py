"""Everything that is not the SIP API, passed on to livekit-server: HTTP and websockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiohttp
from aiohttp import WSMsgType, web

_HOP = ("connection", "keep-alive", "te", "trailers", "transfer-encoding", "upgrade", "host")
_NOT_PASSED_ON = (*_HOP, "content-length", "proxy-authenticate", "proxy-authorization")


class Proxy:
    """Hands requests to the server at `target` (http://…) and its answers back."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )

    async def close(self) -> None:
        await self._session.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._websocket(request)
        try:
            async with self._session.request(
                request.method,
                self._target + request.path_qs,
                headers=_passed_on(request.headers.items()),
                data=await request.read(),
                allow_redirects=False,
            ) as answer:
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    headers=_passed_on(answer.headers.items()),
                )
        except aiohttp.ClientConnectionError:
            return web.Response(status=502, text="livekit-server is not there")

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        try:
            server = await self._session.ws_connect(
                self._target + request.path_qs,
                headers=_passed_on(request.headers.items()),
                max_msg_size=0,
                autoping=False,
                autoclose=False,
            )
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status, text=error.message)
        except aiohttp.ClientConnectionError:
            return web.Response(status=502, text="livekit-server is not there")
        client = web.WebSocketResponse(max_msg_size=0, autoping=False, autoclose=False)
        try:
            await client.prepare(request)
            await _both_ways(client, server)
        except ConnectionResetError:  # the client left before the handshake was done
            pass
        finally:
            await server.close()
            if client.prepared:
                await client.close()
        return client


def _passed_on(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in _NOT_PASSED_ON and not name.lower().startswith("sec-websocket-")
    ]


_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _both_ways(
    client: web.WebSocketResponse, server: aiohttp.ClientWebSocketResponse
) -> None:
    pumps = [
        asyncio.create_task(_pump(server, client)),
        asyncio.create_task(_pump(client, server)),
    ]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: _Socket, sink: _Socket) -> None:
    while True:
        message = await source.receive()
        if message.type == WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        elif message.type == WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type == WSMsgType.PING:
            await sink.ping(message.data)
        elif message.type == WSMsgType.PONG:
            await sink.pong(message.data)
        else:  # CLOSE, CLOSING, CLOSED, ERROR
            await sink.close(code=source.close_code or aiohttp.WSCloseCode.OK)
            return
