import json

import pytest

from call import (
    BadRequest,
    Call,
    DialRequest,
    Direction,
    Disposition,
    EndedBy,
    Ending,
    transfer_uri,
)


def metadata(**given: object) -> str:
    return json.dumps({"phone_number": "+15551230001"} | given)


@pytest.mark.parametrize("text", ["", "  ", "{}", '{"theme": "dark"}'])
def test_metadata_without_our_keys_is_an_inbound_call(text: str) -> None:
    assert DialRequest.parse(text) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("not json", "metadata"),
        ("[1]", "metadata"),
        ('"+15551230001"', "metadata"),
        ('{"name": "Jo"}', "phone_number"),
        (metadata(phone_number="5551230001"), "phone_number"),
        (metadata(phone_number="+1555123000x"), "phone_number"),
        (metadata(phone_number=15551230001), "phone_number"),
        (metadata(nmae="Jo"), "nmae"),
        (metadata(name=7), "name"),
        (metadata(name="J\0"), "name"),
        (metadata(contact_id="\ud800"), "contact_id"),
        (metadata(transfer_to="reception"), "transfer_to"),
        (metadata(destinations={"billing": "12"}), "destinations"),
        (metadata(destinations=["+15551230002"]), "destinations"),
        (metadata(timezone="Mars/Base"), "timezone"),
        (metadata(caller_id="anonymous"), "caller_id"),
    ],
)
def test_a_request_that_cannot_be_dialled_names_its_key(text: str, key: str) -> None:
    with pytest.raises(BadRequest, match=f"^{key}:"):
        DialRequest.parse(text)


def test_a_whole_request_is_taken_as_given() -> None:
    request = DialRequest.parse(
        metadata(
            call_id="c1",
            name="Jo",
            transfer_to="sip:desk@example.com",
            timezone="Europe/Berlin",
            destinations={"billing": "+15551230009"},
        )
    )

    assert request is not None
    assert request.call_id == "c1"
    assert request.destinations == {"person": "sip:desk@example.com", "billing": "+15551230009"}


def test_transfer_uris_are_what_the_bridge_takes() -> None:
    assert transfer_uri("+15551230001") == "tel:+15551230001"
    assert transfer_uri("sips:a@b.example") == "sips:a@b.example"
    with pytest.raises(ValueError, match="SIP URI"):
        transfer_uri("reception")


def test_the_first_ending_of_a_call_stands() -> None:
    call = Call("c", "j", "r", "w", Direction.INBOUND)
    first = Ending(Disposition.TRANSFERRED, EndedBy.AGENT)

    call.end(first)
    call.end(Ending(Disposition.FAILED, EndedBy.SYSTEM))

    assert call.ending is first
    assert call.ended_at is not None
