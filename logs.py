"""Log records without personal data."""

from __future__ import annotations

import logging
import re

from livekit.agents import telemetry

_NUMBER = re.compile(r"\+?\d{7,15}(?!\d)")
_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class DropPersonalData(logging.Filter):
    """Drops `lk.pii.*` extras, and the numbers that the SIP bridge puts into names."""

    def filter(self, record: logging.LogRecord) -> bool:
        for key in record.__dict__.keys() - _STANDARD:
            value = record.__dict__[key]
            if telemetry.pii.is_pii_attribute(key):
                del record.__dict__[key]
            elif isinstance(value, str):
                record.__dict__[key] = _NUMBER.sub("<number>", value)
        return True


def protect() -> None:
    """Put the filter on every handler of the root logger, once."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(f, DropPersonalData) for f in handler.filters):
            handler.addFilter(DropPersonalData())
