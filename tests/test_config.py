from dataclasses import fields
from pathlib import Path

import pytest

from config import BadSetting, Settings


def test_settings_come_from_the_environment_given() -> None:
    settings = Settings.load(
        {"MAX_CALLS": "3", "STORE_TRANSCRIPTS": "true", "DATA_DIR": "/srv/x", "OTHER": "1"}
    )

    assert (settings.max_calls, settings.store_transcripts) == (3, True)
    assert settings.data_dir == Path("/srv/x")
    assert settings.records_url == "sqlite:////srv/x/records.db"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_CALLS", "many"),
        ("MAX_CALLS", "0"),
        ("MAX_CALL_S", "-1"),
        ("STORE_TRANSCRIPTS", "maybe"),
        ("TURN_DETECTION", "guess"),
        ("TRANSFER_DESTINATIONS", "billing"),
        ("TRANSFER_DESTINATIONS", "billing=12"),
        ("MAX_ENDPOINTING_DELAY_S", "0.01"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(BadSetting, match=name):
        Settings.load({name: value})


def test_destinations_are_read_as_pairs() -> None:
    settings = Settings.load({"TRANSFER_DESTINATIONS": "billing=+15551230001, desk=sip:a@b.c"})

    assert settings.transfer_destinations == {"billing": "+15551230001", "desk": "sip:a@b.c"}


def test_no_secret_is_printed() -> None:
    secret = {
        f.name.upper(): "hush" for f in fields(Settings) if f.name.endswith(("key", "secret"))
    }

    printed = repr(Settings.load(secret))

    assert "hush" not in printed.replace("livekit_api_key='hush'", "")
