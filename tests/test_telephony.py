import numpy as np
import pytest
from livekit import api, rtc

from call import Disposition
from telephony import BeepListener, dial_ending

RATE = 24_000


def sip_error(code: int) -> api.SipCallError:
    return api.SipCallError("x", "x", status=400, metadata={"sip_status_code": str(code)})


def server_error(code: str) -> api.ServerError:
    return api.ServerError(code, "x", status=400)


@pytest.mark.parametrize(
    ("disposition", "codes"),
    [
        (Disposition.BUSY, [486, 600]),
        (Disposition.DECLINED, [603, 607, 608, 403]),
        (Disposition.BAD_NUMBER, [404, 410, 604, 484]),
        (Disposition.UNREACHABLE, [480]),
        (Disposition.NO_ANSWER, [408, 487]),
        (Disposition.FAILED, [401, 407, 488, 500, 502, 503, 504, 580]),
    ],
)
def test_a_sip_code_is_a_disposition(disposition: Disposition, codes: list[int]) -> None:
    endings = [dial_ending(sip_error(code), "ringing", False) for code in codes]

    assert {e.disposition for e in endings} == {disposition}
    assert [e.sip_status for e in endings] == codes


@pytest.mark.parametrize(
    ("error", "status", "disposition"),
    [
        (server_error("canceled"), "ringing", Disposition.NO_ANSWER),
        (server_error("canceled"), "dialing", Disposition.UNREACHABLE),
        (server_error("canceled"), "", Disposition.UNREACHABLE),
        (server_error("unavailable"), "dialing", Disposition.FAILED),
        (server_error("not_found"), "", Disposition.NOT_DIALED),
        (TimeoutError(), "ringing", Disposition.FAILED),
    ],
)
def test_without_a_sip_code_the_last_status_tells(
    error: Exception, status: str, disposition: Disposition
) -> None:
    assert dial_ending(error, status, False).disposition is disposition


def test_a_room_deleted_while_ringing_is_a_failure_of_the_system() -> None:
    ending = dial_ending(server_error("canceled"), "ringing", True)

    assert (ending.disposition, ending.ended_by) == (Disposition.FAILED, "system")


def hear(samples: np.ndarray, then_s: float = 0.2) -> BeepListener:
    listener = BeepListener()
    pcm = np.concatenate([samples, np.zeros(int(RATE * then_s))]).astype(np.int16)
    for start in range(0, len(pcm), RATE // 20):
        piece = pcm[start : start + RATE // 20]
        listener.push(rtc.AudioFrame(piece.tobytes(), RATE, 1, len(piece)))
    return listener


def tone(hz: float, seconds: float, peak: int = 8000) -> np.ndarray:
    return peak * np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE)


@pytest.mark.parametrize("hz", [440, 1000, 1400, 2000])
@pytest.mark.parametrize("seconds", [0.2, 0.6, 1.5])
async def test_a_beep_is_heard_once_it_is_over(hz: float, seconds: float) -> None:
    assert hear(tone(hz, seconds)).heard.is_set()


async def test_a_beep_with_lost_packets_in_it_is_not_over() -> None:
    hole = np.zeros(int(RATE * 0.06))
    beep = np.concatenate([tone(1000, 0.2), hole, tone(1000, 0.3)])

    assert not hear(beep, then_s=0).heard.is_set()
    assert hear(beep).heard.is_set()


async def test_noise_clicks_and_chords_are_no_beep() -> None:
    noise = np.random.default_rng(1).normal(0, 3000, RATE)
    click = tone(1000, 0.06)
    chord = tone(700, 0.5, 4000) + tone(1100, 0.5, 4000)
    faint = tone(1000, 0.5, 100)

    assert not any(hear(sound).heard.is_set() for sound in (noise, click, chord, faint))
