"""The composition root: the server, and what happens to a job from dispatch to record.

Nothing imports this module: run as a script it is `__main__`, and an import would be a second
copy with other classes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import uuid
from dataclasses import dataclass, field
from typing import Any

from livekit.agents import (
    AgentServer,
    AutoSubscribe,
    JobContext,
    JobExecutorType,
    JobProcess,
    JobRequest,
    cli,
)

import behaviors
import logs
import prompts
import providers
import support
from call import BadRequest, Call, DialRequest, Direction, Disposition, EndedBy, Ending
from caretaker import Caretaker
from config import BadSetting, Settings
from memory import Memory
from rag import Knowledge
from records import Records, Repeated
from telephony import DialFailed, PhoneLine
from userdata import Userdata

logger = logging.getLogger("agent")

VERSION = "0.1.0"
CALLER_LIMIT_S = 15.0
"""How long an answered dispatch waits for its caller."""


@dataclass
class Job:
    """What the worker holds of one call while it lasts."""

    ctx: JobContext
    call: Call
    line: PhoneLine
    loop: asyncio.AbstractEventLoop
    opening: asyncio.Task[None] | None = None
    """Writes the call's row."""
    userdata: Userdata | None = None
    agent: support.CustomerSupport | None = None


@dataclass
class Desk:
    """The worker's services and its live calls."""

    settings: Settings
    worker_id: str
    records: Records
    memory: Memory
    knowledge: Knowledge
    jobs: dict[str, Job] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    """Jobs accepted and not yet over."""

    def open(self) -> None:
        """Bring the database up to date and take up unfinished work."""
        self.records.migrate()
        self.memory.start()

    async def admit(self, request: JobRequest) -> None:
        """Take the call unless MAX_CALLS are up; another worker may take what we refuse."""
        if len(self.taken) >= self.settings.max_calls:
            await request.reject(terminate=False)
            return
        self.taken.add(request.id)
        try:
            await request.accept(identity=f"agent-{request.id}")
        except BaseException:
            self.taken.discard(request.id)
            raise

    async def handle(self, ctx: JobContext) -> None:
        """One call, from its job to the moment it is being spoken."""
        call, problem = self._call(ctx)
        job = Job(ctx, call, PhoneLine(ctx, self.settings), asyncio.get_running_loop())
        self.jobs[ctx.job.id] = job
        ctx.log_context_fields = {"call_id": call.id}
        job.opening = asyncio.create_task(self._open_row(call))
        if problem:
            call.end(Ending(Disposition.NOT_DIALED, EndedBy.SYSTEM, problem))
        if not call.is_inbound:
            await job.opening
        if call.ending:
            ctx.shutdown(call.ending.reason)
            return
        await ctx.connect(auto_subscribe=AutoSubscribe.AUDIO_ONLY)
        u = job.userdata = self._userdata(job)
        if call.is_inbound:
            await self._answer(job, u)
        elif call.request:
            await self._place(job, u, call.request)

    def _call(self, ctx: JobContext) -> tuple[Call, str]:
        """The call a job asks for, and what keeps it from being placed ("" if nothing)."""
        problem, request = "", None
        try:
            request = DialRequest.parse(ctx.job.metadata)
        except BadRequest as error:
            problem = str(error)
        is_inbound = request is None and not problem
        call = Call(
            id=(request.call_id if request else "") or ctx.job.id,
            job_id=ctx.job.id,
            room=ctx.job.room.name,
            worker_id=self.worker_id,
            direction=Direction.INBOUND if is_inbound else Direction.OUTBOUND,
            number=request.phone_number if request else None,
            request=request,
        )
        return call, problem

    async def _open_row(self, call: Call) -> None:
        try:
            await asyncio.to_thread(self.records.open, call)
        except Repeated:
            call.id = call.job_id
            call.end(
                Ending(Disposition.NOT_DIALED, EndedBy.SYSTEM, "call_id: was dispatched before")
            )
            await asyncio.to_thread(self.records.open, call)

    def _userdata(self, job: Job) -> Userdata:
        return Userdata(
            call=job.call,
            settings=self.settings,
            records=self.records,
            memory=self.memory,
            knowledge=self.knowledge,
            line=job.line,
            finish=lambda: job.ctx.shutdown("call ended"),
        )

    async def _answer(self, job: Job, u: Userdata) -> None:
        """An inbound call: wait for the caller, then greet."""
        call, line = job.call, job.line
        call.ringing_at = call.dispatched_at
        phone = await line.wait_for_caller(CALLER_LIMIT_S)
        if phone is None:
            u.end(_nobody_came(job.ctx.job.metadata))
            return
        number = phone.attributes.get("sip.phoneNumber", "")
        call.number = number if number.startswith("+") else None
        call.learns = call.number is not None
        call.dialed_number = phone.attributes.get("sip.trunkPhoneNumber")
        behaviors.end_with_the_line(u)
        job.agent = await support.open_session(u, job.ctx.room, phone.identity)
        u.start(_note_answer(line, call), "note answer")

    async def _place(self, job: Job, u: Userdata, request: DialRequest) -> None:
        """An outbound call: the session first, then the dial, so no first word is lost."""
        job.agent = await support.open_session(u, job.ctx.room)
        try:
            await job.line.dial(job.call, request)
        except DialFailed as failure:
            u.end(failure.ending)
            return
        behaviors.end_with_the_line(u)
        job.agent.open_outbound()

    async def close(self, ctx: JobContext) -> None:
        """The last of every job: the room is ended, the record closed, learning queued."""
        job = self.jobs.pop(ctx.job.id, None)
        try:
            if job:
                await asyncio.gather(job.line.hang_up(), self._close_record(job))
        finally:
            self.taken.discard(ctx.job.id)

    async def _close_record(self, job: Job) -> None:
        call, u = job.call, job.userdata
        call.end(Ending(Disposition.FAILED, EndedBy.SYSTEM, "the job crashed or was stopped"))
        if job.opening:
            await asyncio.wait([job.opening])
        if u:
            await u.settle()
        saving = asyncio.to_thread(self.records.save, call)
        if u and u.words and u.remembers and call.number and not u.is_machine:
            learning = asyncio.to_thread(self.memory.learn, call.number, call.id, u.words)
            await asyncio.gather(saving, learning)
        else:
            await saving

    def close_down(self) -> None:
        """DRAIN_TIMEOUT_S is over: end every live call with a sentence."""
        for job in list(self.jobs.values()):
            if job.userdata and job.agent:
                asyncio.run_coroutine_threadsafe(
                    job.userdata.wind_up(
                        job.agent.session,
                        prompts.CLOSING_DOWN,
                        Ending(Disposition.COMPLETED, EndedBy.SYSTEM, "the worker shut down"),
                    ),
                    job.loop,
                )


async def _note_answer(line: PhoneLine, call: Call) -> None:
    await line.answered.wait()
    call.answered_at = line.answered_at


def _nobody_came(metadata: str) -> Ending:
    keys = ", ".join(sorted(json.loads(metadata.strip() or "{}")))
    if keys:
        reason = f"nobody called, and these are no keys of ours: {keys[:200]}"
        return Ending(Disposition.NOT_DIALED, EndedBy.SYSTEM, reason)
    return Ending(Disposition.ABANDONED, EndedBy.CALLER, "nobody was there")


class DrainingServer(AgentServer):
    """An AgentServer that ends calls with a spoken sentence when draining takes too long."""

    desk: Desk
    caretaker: Caretaker

    async def run(self, **options: Any) -> None:
        """Open the services, then take calls."""
        await asyncio.to_thread(self.desk.open)
        gc.freeze()  # or collecting among all that is imported halts every call: 230 ms measured
        self.caretaker.start()
        await super().run(**options)

    async def drain(self, timeout: object = None) -> None:
        """Wait for running calls, DRAIN_TIMEOUT_S at most and a sentence more."""
        limit = self.desk.settings.drain_timeout_s
        asyncio.get_running_loop().call_later(limit, self.desk.close_down)
        await super().drain(timeout=int(limit) + 15)


def make_desk(settings: Settings) -> Desk:
    """Open what all calls share."""
    records = Records(
        settings.records_url,
        spool=settings.data_dir / "spool",
        store_transcripts=settings.store_transcripts,
        version=VERSION,
    )
    return Desk(
        settings=settings,
        worker_id=f"worker-{uuid.uuid4().hex[:12]}",
        records=records,
        memory=Memory(settings, records),
        knowledge=Knowledge(settings),
    )


def make_server(desk: Desk, caretaker: Caretaker) -> AgentServer:
    """The worker: one process, a thread per call."""
    settings = desk.settings

    def warm(process: JobProcess) -> None:
        logs.protect()

    server = DrainingServer(
        job_executor_type=JobExecutorType.THREAD,
        ws_url=settings.livekit_url,
        api_key=settings.livekit_api_key,
        api_secret=settings.livekit_api_secret,
        host=settings.health_host,
        port=settings.health_port,
        log_level=settings.log_level,
        num_idle_processes=min(settings.max_calls, 4),
        load_fnc=lambda: len(desk.taken) / settings.max_calls,
        load_threshold=float("inf"),  # admission is decided in `admit`, exactly
        setup_fnc=warm,
    )
    server.desk, server.caretaker = desk, caretaker
    server.rtc_session(
        desk.handle,
        agent_name=settings.agent_name,
        on_request=desk.admit,
        on_session_end=desk.close,
    )

    return server


def main() -> None:
    try:
        settings = Settings.load()
    except BadSetting as error:
        sys.exit(f"{error}")
    providers.load(settings)
    desk = make_desk(settings)
    caretaker = Caretaker(settings, desk.records, desk.memory, desk.worker_id)
    try:
        cli.run_app(make_server(desk, caretaker))
    finally:
        caretaker.stop()
        desk.memory.close()


if __name__ == "__main__":
    main()
