"""The demo: five calls against the unmodified worker, shown, measured and recorded in `out/`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import time
from pathlib import Path

from commands.calls import table
from simulator.child import ChildFailed, leave
from simulator.livekit_server import NoLiveKitServer
from simulator.rehearsal import NotAsScripted, Rehearsal, Report, load_scripts
from simulator.script import SCRIPTS, BadScript, Script
from simulator.studio import Studio

OUT = Path("out")
LEAST_HEARD = 0.95


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./task demo --", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--scripts", type=Path, default=SCRIPTS, help="a folder of other scripts")
    parser.add_argument("--seed", type=int, help="of the mailbox; by default another each time")
    return parser.parse_args(arguments)


def show(who: str, words: str) -> None:
    print(f"  {who:>9}  {words}", flush=True)


async def play(scripts: list[Script], seed: int) -> list[Report]:
    """All calls, one after another, on one worker."""
    reports = []
    print("Starting a LiveKit server, the phone network, the stand-in providers and the worker ...")
    async with Studio(STORE_TRANSCRIPTS="true") as studio:
        await studio.worker()
        for number, script in enumerate(scripts, 1):
            way = "from" if script.is_inbound else "to"
            print(f"\n{number}. {script.name} ({way} {script.number})", flush=True)
            report = await Rehearsal(studio, script, show, seed).play()
            reports.append(report)
            tell(report)
            if report.recording:
                report.recording.save(OUT / f"{number}-{script.name.replace(' ', '-')}.wav")
    return reports


def tell(report: Report) -> None:
    """What a call came to, below its words."""
    for tool in report.row.tool_calls:
        show("tool", f"{tool.name}: {tool.code} ({tool.ms:.0f} ms)")
    reason = f": {report.row.reason}" if report.row.reason else ""
    show("ended", f"{report.row.disposition}, by {report.row.ended_by}{reason}")
    for problem in failures(report):
        show("PROBLEM", problem)


def failures(report: Report) -> list[str]:
    """Why the demo fails with this call."""
    found = list(report.problems)
    if report.heard_ratio is not None and report.heard_ratio < LEAST_HEARD:
        found.append(f"only {report.heard_ratio:.0%} of the agent's words were heard")
    return found


def summary(reports: list[Report]) -> str:
    replies = [ms for report in reports for ms in report.reply_ms]
    lines = ["", table([report.row for report in reports])]
    if replies:
        median = statistics.median(replies)
        lines.append(
            f"\nreply time as heard by the phone: median {median:.0f} ms, longest "
            f"{max(replies):.0f} ms, of {len(replies)} turns; recordings are in {OUT}/"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # The native library calls it an error when a room is deleted with a phone in it.
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    seed = options.seed if options.seed is not None else int(time.time())
    try:
        reports = asyncio.run(play(load_scripts(options.scripts), seed))
    except (BadScript, NoLiveKitServer, ChildFailed, NotAsScripted) as error:
        sys.exit(str(error))
    print(summary(reports))
    if options.json:
        figures = {"calls": [report.to_json() for report in reports]}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if any(failures(report) for report in reports) else 0


if __name__ == "__main__":
    leave(main())
