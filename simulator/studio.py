"""Everything a rehearsal needs, as one: LiveKit server, phone network, stand-ins, a worker."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path

from livekit import api

from records import CallRow, Records
from simulator.livekit_server import LiveKitServer
from simulator.network import PhoneNetwork
from simulator.providers import StandInProviders
from simulator.speech import telephone_line
from simulator.worker import Worker

DESK_NUMBER = "+15550149999"


class Studio:
    """`async with Studio() as studio`: then dial, dispatch and read the records."""

    def __init__(self, **settings: str) -> None:
        self._settings = settings
        self.livekit = LiveKitServer()
        self.stand_ins = StandInProviders()
        self.network = PhoneNetwork(
            self.livekit, announce=self.stand_ins.announce, line=telephone_line
        )
        self.data_dir = Path(tempfile.mkdtemp(prefix="rehearsal-"))
        self.workers: list[Worker] = []
        self.trunk_id = ""

    async def __aenter__(self) -> Studio:
        try:
            await self.livekit.start()
            await self.stand_ins.start()
            await self.network.start()
            self.trunk_id = await self._make_trunk()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        for worker in self.workers:
            if worker.returncode is None:
                await worker.stop()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, self.data_dir, ignore_errors=True)
            stack.push_async_callback(self.livekit.stop)
            stack.push_async_callback(self.stand_ins.stop)
            stack.push_async_callback(self.network.stop)

    async def worker(self, **settings: str) -> Worker:
        """A running worker on this studio's data, with `settings` over the studio's own."""
        worker = Worker(self.environment() | settings)
        self.workers.append(worker)
        await worker.start()
        return worker

    def environment(self) -> dict[str, str]:
        """The settings of a worker, chat or command in this studio."""
        return {
            **self.stand_ins.env(),
            "LIVEKIT_URL": self.network.url,
            "LIVEKIT_API_KEY": self.livekit.key,
            "LIVEKIT_API_SECRET": self.livekit.secret,
            "SIP_OUTBOUND_TRUNK_ID": self.trunk_id,
            "TRANSFER_DESTINATIONS": f"person={DESK_NUMBER}",
            "DATA_DIR": str(self.data_dir),
            **self._settings,
        }

    @property
    def records_url(self) -> str:
        default = f"sqlite:///{self.data_dir / 'records.db'}"
        return self._settings.get("DATABASE_URL") or default

    def records(self) -> Records:
        """The records the workers write, to be read."""
        return Records(self.records_url, spool=self.data_dir / "spool")

    async def closed(self, room: str, timeout: float = 15.0) -> CallRow:
        """The closed record of the call in `room`, waited for."""
        records = self.records()
        try:
            deadline = asyncio.get_running_loop().time() + timeout
            while asyncio.get_running_loop().time() < deadline:
                for row in await asyncio.to_thread(records.recent, 50):
                    if row.room == room and row.disposition:
                        found = await asyncio.to_thread(records.get, row.id)
                        assert found is not None
                        return found
                await asyncio.sleep(0.02)
        finally:
            records.dispose()
        raise TimeoutError(f"no closed record within {timeout:g} s")

    async def _make_trunk(self) -> str:
        async with self.network.api() as livekit:
            trunk = api.SIPOutboundTrunkInfo(
                name="rehearsal", address="carrier.test", numbers=["+15550140000"]
            )
            made = await livekit.sip.create_outbound_trunk(
                api.CreateSIPOutboundTrunkRequest(trunk=trunk)
            )
        return made.sip_trunk_id
