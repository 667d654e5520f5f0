"""List the calls, newest first, or show one: `./task calls`, `./task calls -- ID`."""

from __future__ import annotations

import argparse
import sys

from sqlalchemy.exc import SQLAlchemyError

from config import BadSetting, Settings
from records import CallRow, Records

COLUMNS = "{:20} {:9} {:16} {:13} {:9} {:>5} {:>7}  {}"


def line(row: CallRow) -> str:
    """One call as a row of the table; times are local."""
    seconds = ""
    if row.answered_at and row.ended_at:
        seconds = f"{(row.ended_at - row.answered_at).total_seconds():.0f}"
    reply = f"{row.reply_p50_ms:.0f}" if row.reply_p50_ms is not None else ""
    when = f"{row.dispatched_at.astimezone():%Y-%m-%d %H:%M:%S}"
    status = row.disposition or "(up)"
    number = row.number or "withheld"
    return COLUMNS.format(
        when, row.direction, number, status, row.ended_by or "", seconds, reply, row.id
    )


def table(rows: list[CallRow]) -> str:
    head = COLUMNS.format(
        "dispatched", "direction", "number", "disposition", "ended by", "s", "p50 ms", "id"
    )
    return "\n".join([head, *map(line, rows)])


def show(row: CallRow) -> str:
    """All that the record of one call holds."""
    lines = [f"{name:15} {value}" for name, value in row.fields() if value not in (None, "")]
    lines += [f"tool            {t.name}: {t.code}, {t.ms:.0f} ms" for t in row.tool_calls]
    cut = {True: " (interrupted)", False: ""}
    lines += [f"{t.speaker:15} {t.text}{cut[t.is_interrupted]}" for t in row.said]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./task calls --", description=__doc__)
    parser.add_argument("id", nargs="?", help="the call to show")
    parser.add_argument("--limit", type=int, default=20, help="how many are listed (20)")
    options = parser.parse_args(arguments)
    try:
        settings = Settings.load()
        records = Records(settings.records_url, spool=settings.data_dir / "spool")
        records.migrate()
        if not options.id:
            print(table(records.recent(options.limit)))
            return 0
        row = records.get(options.id)
    except BadSetting as error:
        sys.exit(str(error))
    except SQLAlchemyError as error:
        sys.exit(f"the records database does not answer: {type(error).__name__}")
    if row is None:
        sys.exit(f"no call {options.id}; `./task calls` lists them")
    print(show(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
