"""Place an outbound call and follow it to its disposition: `./task call -- +15551230001`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid

import aiohttp
from livekit import api
from sqlalchemy.exc import SQLAlchemyError

from call import BadRequest, DialRequest
from config import BadSetting, Settings
from records import CallRow, Records

WORKER_LIMIT_S = 10.0
"""How long a worker may take to accept the call."""
RECORD_LIMIT_S = 15.0
"""How long the record of an accepted call may take to appear."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./task call --", description=__doc__)
    parser.add_argument("phone_number", help="who is called, like +15551230001")
    for name in ("name", "purpose", "script", "voicemail_message", "transfer_to", "trunk_id"):
        parser.add_argument(f"--{name.replace('_', '-')}", default="")
    return parser.parse_args(arguments)


async def place(settings: Settings, metadata: dict[str, str]) -> str:
    """Dispatch the call into a room of its own; the room's name once a worker is in it."""
    room = f"call-{metadata['call_id']}"
    async with api.LiveKitAPI(
        settings.livekit_url, settings.livekit_api_key, settings.livekit_api_secret
    ) as livekit:
        dispatch = api.CreateAgentDispatchRequest(
            agent_name=settings.agent_name, room=room, metadata=json.dumps(metadata)
        )
        created = await livekit.agent_dispatch.create_dispatch(dispatch)
        deadline = time.monotonic() + WORKER_LIMIT_S
        while time.monotonic() < deadline:
            if await _is_taken(livekit, room, created.id):
                return room
            await asyncio.sleep(0.2)
        await livekit.room.delete_room(api.DeleteRoomRequest(room=room))
    sys.exit(f"no worker named {settings.agent_name} took the call within {WORKER_LIMIT_S:.0f} s")


async def _is_taken(livekit: api.LiveKitAPI, room: str, dispatch_id: str) -> bool:
    """Whether a worker has the job; a room that is already gone was served, too."""
    try:
        people = await livekit.room.list_participants(api.ListParticipantsRequest(room=room))
        dispatch = await livekit.agent_dispatch.get_dispatch(dispatch_id, room)
    except api.ServerError as error:
        if error.code == "not_found":
            return True
        raise
    is_agent = api.ParticipantInfo.Kind.AGENT
    has_job = dispatch is not None and bool(dispatch.state.jobs)
    return has_job or any(p.kind == is_agent for p in people.participants)


async def follow(records: Records, call_id: str) -> CallRow:
    """Print each step of the call until its record is closed."""
    said = ""
    deadline = time.monotonic() + RECORD_LIMIT_S
    while True:
        row = await asyncio.to_thread(records.get, call_id)
        if row is None and time.monotonic() > deadline:
            sys.exit(
                f"a worker took the call, but no record appears within {RECORD_LIMIT_S:.0f} s: "
                "this program needs the worker's DATABASE_URL (or its DATA_DIR)"
            )
        step = _step(row)
        if step != said:
            print(step, flush=True)
            said = step
        if row and row.disposition:
            return row
        await asyncio.sleep(0.2)


def _step(row: CallRow | None) -> str:
    if row is None:
        return "dispatched"
    if row.disposition:
        return (
            f"{row.disposition} (ended by {row.ended_by}{', ' if row.reason else ''}{row.reason})"
        )
    return "answered" if row.answered_at else "dialling" if row.ringing_at else "taken"


async def run(settings: Settings, options: argparse.Namespace) -> int:
    call_id = f"call-{uuid.uuid4().hex[:12]}"
    metadata = {k: v for k, v in vars(options).items() if v} | {"call_id": call_id}
    DialRequest.parse(json.dumps(metadata))
    records = Records(settings.records_url, spool=settings.data_dir / "spool")
    await asyncio.to_thread(records.migrate)
    await place(settings, metadata)
    row = await follow(records, call_id)
    return 0 if row.disposition in ("completed", "transferred", "voicemail") else 1


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return asyncio.run(run(Settings.load(), options))
    except (BadSetting, BadRequest) as error:
        sys.exit(str(error))
    except SQLAlchemyError as error:
        sys.exit(f"the records can't be read ({type(error).__name__}): is DATABASE_URL right?")
    except (aiohttp.ClientError, OSError, api.ServerError, ValueError) as error:
        sys.exit(f"LiveKit: {error} - is LIVEKIT_URL right, and are its key and secret?")


if __name__ == "__main__":
    sys.exit(main())
