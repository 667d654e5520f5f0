"""Log records without personal data."""

from __future__ import annotations

import logging
import re

from livekit.agents import telemetry

_NUMBER = re.compile(r"\+?\d{7,15}(?!\d)")
_UNSPOKEN = re.compile(r"(?<=pushed for text: ).*", re.DOTALL)
"""What the library's error of a voice that stays silent quotes."""
_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class DropPersonalData(logging.Filter):
    """Drops `lk.pii.*` extras, whole jobs with their metadata, the words that could not be spoken,
    and the numbers that the SIP bridge puts into names."""

    def filter(self, record: logging.LogRecord) -> bool:
        for key in record.__dict__.keys() - _STANDARD:
            value = record.__dict__[key]
            if telemetry.pii.is_pii_attribute(key) or isinstance(value, dict):
                del record.__dict__[key]
            elif isinstance(value, str):
                record.__dict__[key] = _NUMBER.sub("<number>", value)
        if isinstance(record.args, tuple):
            record.args = tuple(_wordless(arg) for arg in record.args)
        if record.exc_info and record.exc_info[1] and _UNSPOKEN.search(str(record.exc_info[1])):
            record.msg = f"{record.msg} ({type(record.exc_info[1]).__name__})"
            record.exc_info = record.exc_text = None
        return True


def _wordless(arg: object) -> object:
    return _UNSPOKEN.sub("", str(arg)) if isinstance(arg, Exception) else arg


def protect() -> None:
    """Put the filter on every handler of the root logger, once."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(f, DropPersonalData) for f in handler.filters):
            handler.addFilter(DropPersonalData())
