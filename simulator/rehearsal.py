"""Plays a scripted call against the worker and measures it at the phone."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from records import CallRow
from simulator import speech
from simulator.bridge import Line
from simulator.ear import Ear
from simulator.handset import SAMPLE_RATE
from simulator.phone import CallOver, Phone
from simulator.recording import (
    Recording,
    Segment,
    cut_ends,
    level_db,
    missing_ms,
    overlap_ms,
    speech_segments,
)
from simulator.script import Mailbox, Script, Step
from simulator.studio import Studio

HEAR_LIMIT_S = 20.0
QUIET_S = 0.6
CLIPPED_MS = 80.0
"""Whole sentences lacked up to 30 ms of their start."""

Show = Callable[[str, str], None]
"""(who, words) -> shown as it happens."""


class NotAsScripted(Exception):
    """The call went another way than its script; the message says where."""


@dataclass
class Report:
    """What was measured of one call; None where a figure does not apply."""

    script: Script
    row: CallRow
    recording: Recording | None
    problems: list[str] = field(default_factory=list)
    reply_ms: list[float] = field(default_factory=list)
    first_word_ms: float | None = None
    end_ms: float | None = None
    heard_ratio: float | None = None
    overlap_ms: float | None = None
    clipped: int | None = None
    level_db: float | None = None

    def to_json(self) -> dict[str, Any]:
        row = self.row
        return {
            "direction": str(row.direction),
            "disposition": str(row.disposition),
            "turns": row.turns,
            "tools": [{"name": t.name, "code": t.code} for t in row.tool_calls],
            "reply_ms": [round(ms) for ms in self.reply_ms],
            "first_word_ms": _rounded(self.first_word_ms),
            "end_ms": _rounded(self.end_ms),
            "interruptions": row.interruptions,
            "heard_ratio": None if self.heard_ratio is None else round(self.heard_ratio, 3),
            "overlap_ms": _rounded(self.overlap_ms),
            "clipped": self.clipped,
            "level_db": None if self.level_db is None else round(self.level_db, 1),
        }


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


class Rehearsal:
    """One call, played."""

    def __init__(self, studio: Studio, script: Script, show: Show, seed: int = 1) -> None:
        self.studio = studio
        self.script = script
        self.show = show
        self.seed = seed
        self.phone: Phone | None = None
        self.mark = 0.0
        """Since when what is heard has not been looked at."""
        self.cut_at: list[float] = []
        """When the caller interrupted (monotonic)."""
        self.is_asked = False
        """Whether the caller's last words are still to be answered."""
        self.reply_ms: list[float] = []

    async def play(self) -> Report:
        """The call from dialling to its closed record."""
        problems: list[str] = []
        try:
            if self.script.remembered and not await self._remembered():
                problems.append(f"not remembered: {self.script.remembered}")
            room = await self._ring()
            for step in self.script.steps:
                await self._do(step)
            if self.phone and not self.phone.gone.is_set() and self.script.steps:
                await self.phone.hang_up()
        except (NotAsScripted, CallOver, TimeoutError, asyncio.TimeoutError) as error:
            problems.append(f"{type(error).__name__}: {error}")
            if not self.phone:
                raise NotAsScripted(problems[-1]) from error
            await self.phone.hang_up()
            room = self.phone.room_name
        row = await self.studio.closed(room)
        report = self._measure(row, time.monotonic())
        report.problems = problems + self._unmet(row)
        return report

    async def _remembered(self) -> bool:
        """Whether the last call has been learned from, in time."""
        records = self.studio.records()
        deadline = time.monotonic() + 10
        try:
            while time.monotonic() < deadline:
                facts = await asyncio.to_thread(records.facts, self.script.number)
                if any(self.script.remembered in fact for fact in facts):
                    return True
                await asyncio.sleep(0.05)
        finally:
            records.dispose()
        return False

    async def _ring(self) -> str:
        script, network = self.script, self.studio.network
        if script.is_inbound:
            self.phone = await network.dial(
                from_=script.number, voice=script.voice, transfer=script.transfer
            )
            self.mark = self.phone.times["dialed"]
            return self.phone.room_name
        line = Line(voice=script.voice, transfer=script.transfer, **script.line)
        network.lines[script.number] = line
        before = len(network.calls)
        metadata = {"phone_number": script.number} | script.dispatch
        room = await network.dispatch(json.dumps(metadata))
        phone = await network.dialled(script.number, after=before)
        if script.steps:
            self.phone = phone
            self.mark = await phone.became_active()
        return room

    async def _do(self, step: Step) -> None:
        assert self.phone
        verb = getattr(self, f"_{step.verb}")
        await verb(self.phone, step)

    async def _say(self, phone: Phone, step: Step) -> None:
        self.show(phone.voice, _shown(step.text))
        said = await phone.say(step.text)
        self.mark, self.is_asked = said.end, True

    async def _interrupt(self, phone: Phone, step: Step) -> None:
        await phone.agent_speaks(HEAR_LIMIT_S, since=self.mark)
        await asyncio.sleep(step.after_s)
        self.show(phone.voice, f"(interrupts) {step.text}")
        self.cut_at.append(time.monotonic())
        said = await phone.say(step.text)
        self.mark = said.end

    async def _hear(self, phone: Phone, step: Step) -> None:
        """The agent speaks, and what it says has the step's words in it."""
        started: float | None = None
        is_reply = self.is_asked
        deadline = time.monotonic() + HEAR_LIMIT_S
        words = ""
        since = self.mark
        while time.monotonic() < deadline:
            try:
                start, end = await self._spoken(phone, since, deadline)
            except (TimeoutError, asyncio.TimeoutError, CallOver):
                break
            if started is None:
                started = start
                if self.is_asked:
                    self.is_asked = False
                    self.reply_ms.append((start - self.mark) * 1000)
            words = self._words(phone)
            if _plain(step.text) in _plain(words):
                reply = f" ({(started - self.mark) * 1000:.0f} ms)" if is_reply else ""
                self.show("agent", words + reply)
                self.mark = max(self.mark, end)
                return
            since = end + 0.05
        raise NotAsScripted(f"heard «{words}» where «{step.text}» was due")

    async def _spoken(self, phone: Phone, since: float, deadline: float) -> tuple[float, float]:
        left = max(0.1, deadline - time.monotonic())
        try:
            return await phone.agent_says(left, since=since, quiet_s=QUIET_S)
        except CallOver:
            await asyncio.sleep(0.2)  # what was on its way when the call ended
            start = phone.ear.first_sound(since)
            if start is None:
                raise
            return start, time.monotonic()

    def _words(self, phone: Phone) -> str:
        ear = self.studio.stand_ins.agent_ear
        pcm = phone.recording().since(self.mark).heard
        return " ".join(found.text for found in ear.transcribe(pcm))

    async def _mailbox(self, phone: Phone, step: Step) -> None:
        box = Mailbox.from_seed(self.seed, self.script.dispatch.get("name", ""))
        self.show("mailbox", _shown(box.greeting))
        greeted = time.monotonic()
        await phone.say(box.greeting)
        await asyncio.sleep(box.beep_after_s)
        self.show("mailbox", f"(beep, after {box.beep_after_s:.1f} s)")
        beep = await phone.say(speech.beep())
        self.mark = beep.end
        spoken = phone.ear.first_sound(greeted)
        if spoken is not None and spoken < beep.end:
            raise NotAsScripted("the agent spoke before the beep had ended")

    async def _press(self, phone: Phone, step: Step) -> None:
        await phone.press(step.text)

    async def _hang_up(self, phone: Phone, step: Step) -> None:
        await asyncio.sleep(step.after_s)
        await phone.hang_up()

    async def _transferred(self, phone: Phone, step: Step) -> None:
        await phone.ended()
        if not phone.transfers:
            raise NotAsScripted("was not transferred")
        self.show("network", f"transferred to {phone.transfers[-1]}")

    async def _ended(self, phone: Phone, step: Step) -> None:
        await phone.ended()

    def _measure(self, row: CallRow, closed: float) -> Report:
        report = Report(self.script, row, None, reply_ms=self.reply_ms)
        phone = self.phone
        if phone is None:
            return report
        times = phone.times
        recording = report.recording = phone.recording()
        start = times["dialed"] if phone.is_inbound else times.get("active")
        if start and "first_sound" in times:
            report.first_word_ms = (times["first_sound"] - start) * 1000
        over = times.get("hung_up", times.get("gone"))
        if over:
            report.end_ms = max(0.0, (closed - over) * 1000)
        agent = _without(phone.ringback, recording)
        if speech_segments(agent.heard):
            sentences = self._sentences(row)
            ear = self.studio.stand_ins.agent_ear
            report.heard_ratio = heard_share(sentences, agent.heard, ear)
            report.overlap_ms = overlap_ms(agent)
            report.clipped = self._clipped(agent)
            report.level_db = level_db(agent.heard)
        return report

    def _sentences(self, row: CallRow) -> list[str]:
        """The sentences that the agent spoke in whole (what it gave up unheard is none of them)."""
        voiced = {entry.what for entry in self.studio.stand_ins.log if entry.service == "tts"}
        spoken = [
            sentence
            for turn in row.said
            if turn.speaker == "agent" and not turn.is_interrupted
            for sentence in re.split(r"(?<=[.!?])\s+", turn.text.strip())
        ]
        return [sentence for sentence in spoken if sentence in voiced]

    def _clipped(self, recording: Recording) -> int:
        """Words of the agent cut at their start, or at their end other than by an interruption."""
        heard, clipped = recording.heard, 0
        for segment in cut_ends(heard):
            at = recording.started + segment.end_s
            clipped += not any(-0.1 < at - cut < 1.5 for cut in self.cut_at)
        for found in self.studio.stand_ins.agent_ear.transcribe(heard):
            stretch = Segment(max(0.0, found.start_s - 0.1), found.end_s + 0.2).of(heard)
            spoken = speech.synthesize(found.text, voice="agent")
            clipped += missing_ms(stretch, spoken)[0] > CLIPPED_MS
        return clipped

    def _unmet(self, row: CallRow) -> list[str]:
        """What the script's `expect` says that is not so."""
        used = [tool.name for tool in row.tool_calls]
        unmet = []
        for key, wanted in self.script.expect.items():
            if key == "tools":
                unmet += [f"{tool} was not used" for tool in wanted if tool not in used]
            elif getattr(row, key) != wanted:
                unmet.append(f"{key} is {getattr(row, key)}, not {wanted}")
        return unmet


def _without(spans: list[tuple[float, float]], recording: Recording) -> Recording:
    """The recording with silence where the phone heard something else than the agent."""
    heard = recording.heard.copy()
    for span in spans:
        start, end = (max(0, round((at - recording.started) * SAMPLE_RATE)) for at in span)
        heard[start:end] = 0
    return replace(recording, heard=heard)


def heard_share(sentences: list[str], pcm: np.ndarray, ear: Ear) -> float:
    """The share of the words of `sentences` that came through (1 if there are none)."""
    left = list(sentences)
    words = came = 0.0
    for found in ear.transcribe(pcm):
        if found.text in left:
            left.remove(found.text)
            words += len(found.text.split())
            came += len(found.text.split()) * found.cover
    words += sum(len(sentence.split()) for sentence in left)
    return came / words if words else 1.0


def _shown(text: str) -> str:
    """Words with their pauses, as people write them."""
    return re.sub(r" ?\[[\d.]+\]", " ...", text)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()


def load_scripts(folder: Path) -> list[Script]:
    """The scripts of a folder, in the order of their names."""
    return [Script.load(path) for path in sorted(folder.glob("*.yaml"))]
