import logging
import sys

from logs import DropPersonalData


def filtered(message: str, *args: object, **extra: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": message, "args": args} | extra)
    DropPersonalData().filter(record)
    return record


def test_numbers_and_metadata_are_dropped_from_extras() -> None:
    record = filtered("joined", room="call-+15551230001_x", job={"metadata": "Jo"})

    assert record.__dict__["room"] == "call-<number>_x"
    assert "job" not in record.__dict__


def test_words_that_could_not_be_spoken_are_not_logged() -> None:
    error = RuntimeError("no audio frames were pushed for text: Hello Jo,\nyour table")
    record = filtered("failed to synthesize speech: %s", error)

    assert record.getMessage().endswith("pushed for text: ")


def test_a_traceback_that_quotes_them_is_dropped() -> None:
    try:
        raise RuntimeError("no audio frames were pushed for text: Hello Jo")
    except RuntimeError:
        record = filtered("error in task", exc_info=sys.exc_info())

    assert "Jo" not in logging.Formatter().format(record)
    assert record.getMessage() == "error in task (RuntimeError)"


def test_other_errors_keep_their_text_and_traceback() -> None:
    try:
        raise ValueError("no such trunk")
    except ValueError as error:
        record = filtered("failed: %s", error, exc_info=sys.exc_info())

    assert "Traceback" in logging.Formatter().format(record)
    assert record.getMessage() == "failed: no such trunk"
