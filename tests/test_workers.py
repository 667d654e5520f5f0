"""Several workers, killed workers, full workers, draining workers."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from pathlib import Path

import pytest

from simulator.studio import Studio
from tests.calls import ask, eventually, greeted, heard, new_number, room_is_gone

pytestmark = pytest.mark.xdist_group("studios")


async def test_a_full_worker_leaves_the_call_to_another() -> None:
    async with Studio(MAX_CALLS="2", SILENCE_LIMIT_S="300") as studio:
        first = await studio.worker()
        phones = list(await asyncio.gather(greeted(studio), greeted(studio)))
        second = await studio.worker()
        phones.append(await greeted(studio))
        question = "How much does furniture delivery cost?"
        answers = await asyncio.gather(*(ask(studio, phone, question) for phone in phones))
        for phone in phones:
            await phone.hang_up()
        rows = [await studio.closed(phone.room_name) for phone in phones]

        assert all("49 dollars" in answer for answer in answers)
        assert rows[0].worker_id == rows[1].worker_id != rows[2].worker_id
        assert first.returncode is second.returncode is None


async def test_a_killed_workers_call_is_closed_and_its_caller_not_left_alone() -> None:
    async with Studio(MAX_CALLS="1", SILENCE_LIMIT_S="300") as studio:
        doomed = await studio.worker()
        lost = await greeted(studio)
        third = await studio.worker()
        living = await greeted(studio)
        doomed.kill()
        await studio.worker()
        row = await studio.closed(lost.room_name, 60)
        await lost.ended(60)
        answer = await ask(studio, living, "How much does furniture delivery cost?")
        await living.hang_up()
        other = await studio.closed(living.room_name)

        assert (row.disposition, row.reason) == ("failed", "worker lost")
        assert await room_is_gone(studio, lost.room_name)
        assert "49 dollars" in answer
        assert other.disposition == "completed"
        assert third.returncode is None


async def test_a_stopped_worker_finishes_its_calls_until_a_limit() -> None:
    async with Studio(DRAIN_TIMEOUT_S="15") as studio:
        worker = await studio.worker()
        asking, staying = await asyncio.gather(greeted(studio), greeted(studio))
        stopping = asyncio.ensure_future(worker.stop(signal.SIGTERM, timeout=60))
        answer = await ask(studio, asking, "How much does furniture delivery cost?")
        await asking.hang_up()
        status = await stopping
        finished, ended = [await studio.closed(p.room_name) for p in (asking, staying)]

        assert "49 dollars" in answer
        assert (finished.disposition, finished.ended_by) == ("completed", "caller")
        assert "have to end the call" in heard(studio, staying, staying.times["first_sound"])
        assert (ended.disposition, ended.ended_by) == ("completed", "system")
        assert status == 0


async def test_the_database_may_be_away_during_a_call() -> None:
    async with Studio() as studio:
        worker = await studio.worker()
        database = studio.data_dir / "records.db"
        phone = await greeted(studio, from_=new_number())
        locker = _lock(database)
        answer = await ask(studio, phone, "How much does furniture delivery cost?")
        await ask(studio, phone, "By the way, I have a three legged cat called Biscuit.")
        await phone.hang_up()
        await phone.ended()
        await eventually(lambda: asyncio.sleep(0, any((studio.data_dir / "spool").glob("*"))), 30)
        locker.close()
        row = await studio.closed(phone.room_name, 30)
        records = studio.records()
        await eventually(lambda: asyncio.to_thread(records.facts, phone.number))

        assert "49 dollars" in answer
        assert row.disposition == "completed"
        assert worker.returncode is None


def _lock(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(str(database), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection
