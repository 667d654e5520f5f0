"""Nobody is left alone: leases are renewed, lost workers' calls closed, their rooms ended.

Runs on one thread of the worker with an event loop of its own, so that a stuck call can't stop it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import aiohttp
from livekit import api
from sqlalchemy.exc import SQLAlchemyError

from config import Settings
from memory import Memory
from records import CallRow, Records

logger = logging.getLogger("caretaker")

ROUND_S = 5.0
"""Between two rounds; a lease outlives three."""
ALONE_S = 10.0
"""How long a phone must have been alone before its room is ended."""


class Caretaker:
    """Does the worker's rounds until stopped."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        memory: Memory,
        worker_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._records = records
        self._memory = memory
        self._worker_id = worker_id
        self._clock = clock
        self._alone_since: dict[str, float] = {}
        """Rooms of lost calls with exactly one phone and no agent, and since when."""
        self._closed_here: set[str] = set()
        """Rooms of lost calls whose record this worker closed."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the present round and return."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._rounds())

    async def _rounds(self) -> None:
        s = self._settings
        async with api.LiveKitAPI(
            s.livekit_url, s.livekit_api_key, s.livekit_api_secret
        ) as livekit:
            while not self._stopping.is_set():
                try:
                    await self.round(livekit)
                except (api.ServerError, aiohttp.ClientError, asyncio.TimeoutError, OSError):
                    logger.warning("LiveKit does not answer; looking again shortly")
                except SQLAlchemyError:
                    logger.warning("the records database does not answer; looking again shortly")
                await asyncio.to_thread(self._stopping.wait, ROUND_S)

    async def round(self, livekit: api.LiveKitAPI) -> None:
        """One round; raises what LiveKit or the database raise."""
        await asyncio.to_thread(self._records.renew, self._worker_id)
        await asyncio.to_thread(self._memory.tend)
        for lost in await asyncio.to_thread(self._records.expired):
            await self._look_after(livekit, lost)
        lost_rooms = await asyncio.to_thread(self._records.lost_rooms)
        for room in lost_rooms | self._alone_since.keys():
            await self._end_if_alone(livekit, room)

    async def _look_after(self, livekit: api.LiveKitAPI, lost: CallRow) -> None:
        people = await _participants(livekit, lost.room)
        if any(p.kind == api.ParticipantInfo.Kind.AGENT for p in people):
            return
        if await asyncio.to_thread(self._records.close_lost, lost.id):
            self._closed_here.add(lost.room)
            logger.warning("closed the record of a lost worker's call", extra={"call_id": lost.id})

    async def _end_if_alone(self, livekit: api.LiveKitAPI, room: str) -> None:
        people = await _participants(livekit, room)
        if not people:
            self._alone_since.pop(room, None)
            self._closed_here.discard(room)
            return
        if len(people) != 1 or people[0].kind != api.ParticipantInfo.Kind.SIP:
            self._alone_since.pop(room, None)
            return
        # Of two deletions at once LiveKit's second makes the room anew: the others come later.
        limit = ALONE_S if room in self._closed_here else 2 * ALONE_S
        if self._clock() - self._alone_since.setdefault(room, self._clock()) > limit:
            await livekit.room.delete_room(api.DeleteRoomRequest(room=room))
            logger.warning("ended a room in which a phone was left alone")


async def _participants(livekit: api.LiveKitAPI, room: str) -> list[api.ParticipantInfo]:
    try:
        found = await livekit.room.list_participants(api.ListParticipantsRequest(room=room))
    except api.ServerError as error:
        if error.code == "not_found":
            return []
        raise
    return list(found.participants)
