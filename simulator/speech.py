"""Natural speech from a text, by a bundled voice, and what a telephone line does to it.

The voice (Piper) is GPL and runs as a program of its own, `piper_tool.py`. Speech is cached in a
folder, so that a text costs nothing the second time.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # more would fight the audio loops for cores

import numpy as np
import soxr  # type: ignore[import-untyped]

RATE = 16_000
"""Hz of all speech in the simulator, unless said otherwise."""
LEVEL_DB = -20.0
"""RMS of active speech, in dBFS."""
_PAUSE = re.compile(r"\s*\[([\d.]+)\]\s*")
_lock = threading.Lock()


class VoiceFailed(Exception):
    """The program that reads texts aloud ended; what it said is on stderr."""


@dataclass(frozen=True)
class Voice:
    """The bundled voice, made another by pitch and tempo (1 = as it is)."""

    pitch: float
    tempo: float


VOICES = {
    "caller": Voice(1.0, 1.0),
    "callee": Voice(1.16, 1.02),
    "recording": Voice(0.9, 0.98),
    "agent": Voice(1.08, 1.05),
}


def synthesize(text: str, *, voice: str = "caller", sample_rate: int = RATE) -> np.ndarray:
    """`text` as int16 mono samples; `[0.8]` in it is a pause of 0.8 s. Thread-safe."""
    pieces = [silence(0)]
    for piece, pause_s in parts(text):
        pieces += [_spoken(piece, voice), silence(pause_s)]
    return resample(np.concatenate(pieces), RATE, sample_rate)


def parts(text: str) -> list[tuple[str, float]]:
    """The pieces of a text between its pauses, each with the pause (s) after it."""
    found = _PAUSE.split(text.strip())
    pauses = [float(pause) for pause in found[1::2]] + [0.0]
    return [(piece, pause) for piece, pause in zip(found[::2], pauses, strict=True) if piece]


def silence(seconds: float, sample_rate: int = RATE) -> np.ndarray:
    return np.zeros(round(seconds * sample_rate), np.int16)


def beep(seconds: float = 0.5, hz: float = 1000.0, sample_rate: int = RATE) -> np.ndarray:
    """The tone after which an answering machine records."""
    at = np.arange(round(seconds * sample_rate)) / sample_rate
    return np.asarray(8000 * np.sin(2 * np.pi * hz * at), np.int16)


def resample(pcm: np.ndarray, source: int, target: int) -> np.ndarray:
    """int16 samples at another rate (Hz)."""
    if source == target or not len(pcm):
        return pcm
    return np.asarray(soxr.resample(pcm, source, target), np.int16)


def telephone_line(pcm: np.ndarray) -> np.ndarray:
    """16 kHz samples as they arrive over a line: 300-3,400 Hz, 8 kHz, G.711 mu-law."""
    if not len(pcm):
        return pcm
    spectrum = np.fft.rfft(pcm.astype(np.float64))
    hz = np.fft.rfftfreq(len(pcm), 1 / RATE)
    spectrum *= np.clip((hz - 200) / 100, 0, 1) * np.clip((3600 - hz) / 200, 0, 1)
    banded = np.fft.irfft(spectrum, len(pcm))
    narrow = soxr.resample(banded, RATE, 8000)
    wide = soxr.resample(_companded(narrow), 8000, RATE)
    fitted = np.pad(wide, (0, max(0, len(pcm) - len(wide))))[: len(pcm)]
    return np.asarray(np.clip(fitted, -32768, 32767), np.int16)


def _companded(samples: np.ndarray) -> np.ndarray:
    """There and back through mu-law's 255 steps."""
    scaled = np.clip(samples / 32768, -1, 1)
    code = np.sign(scaled) * np.log1p(255 * np.abs(scaled)) / np.log(256)
    code = np.round(code * 127) / 127
    return np.asarray(np.sign(code) * (256 ** np.abs(code) - 1) / 255 * 32768)


def mu_law(pcm: np.ndarray) -> bytes:
    """int16 samples as G.711 mu-law bytes."""
    size = np.minimum(np.abs(pcm.astype(np.int32)), 32635) + 132
    exponent = np.floor(np.log2(size)).astype(np.int32) - 7
    mantissa = (size >> (exponent + 3)) & 15
    return bytes((~((pcm < 0) * 128 | exponent << 4 | mantissa) & 255).astype(np.uint8))


@lru_cache(maxsize=512)
def _spoken(piece: str, voice: str) -> np.ndarray:
    """One piece of speech at 16 kHz, trimmed and levelled, from the cache if it is there."""
    path = _cache() / f"{sha256(f'3|{voice}|{VOICES[voice]}|{piece}'.encode()).hexdigest()}.npy"
    pcm = _stored(path)
    if pcm is None:
        with _lock:
            pcm = _stored(path)  # another thread may have been first
            if pcm is None:
                pcm = _levelled(_trimmed(_piper(piece, VOICES[voice])))
                fresh = path.with_suffix(f".{os.getpid()}.npy")
                np.save(fresh, pcm)
                os.replace(fresh, path)
    return pcm


def _stored(path: Path) -> np.ndarray | None:
    try:
        return np.asarray(np.load(path))
    except (OSError, ValueError, EOFError):  # not there yet, or cut short by a full disk
        return None


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "customer-support-agent" / "speech"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load() -> None:
    """Load the voice, so that the first new text is not late (1.5 s)."""
    with _lock:
        _running()


def _piper(piece: str, voice: Voice) -> np.ndarray:
    # A piece that ends without a full stop is read as unfinished: its pitch stays up.
    text = piece if piece[-1] in ".?!," else piece + ","
    request = {"text": " ".join(text.split()), "length_scale": voice.pitch / voice.tempo}
    tool = _running()
    assert tool.stdin
    try:
        tool.stdin.write(json.dumps(request).encode() + b"\n")
        tool.stdin.flush()
        rate, pcm = _answer(tool)
    except BrokenPipeError:
        raise VoiceFailed("the voice ended while it was spoken to") from None
    return resample(pcm, round(rate * voice.pitch), RATE)


_tool: subprocess.Popen[bytes] | None = None


def _running() -> subprocess.Popen[bytes]:
    """The voice, once it is loaded; its input closes with this process, and so it ends."""
    global _tool
    if _tool is None or _tool.poll() is not None:
        command = [sys.executable, "-I", str(Path(__file__).with_name("piper_tool.py"))]
        pipe = subprocess.PIPE
        # in a session of its own, so that Ctrl-C is for us to handle
        _tool = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        _answer(_tool)
    return _tool


def _answer(tool: subprocess.Popen[bytes]) -> tuple[int, np.ndarray]:
    """The sample rate (Hz) and the samples of the tool's next answer."""
    assert tool.stdout
    head = tool.stdout.read(8)
    rate, count = struct.unpack("<II", head) if len(head) == 8 else (0, 0)
    pcm = tool.stdout.read(2 * count)
    if not rate or len(pcm) < 2 * count:
        tool.wait()
        raise VoiceFailed(f"the voice ended with status {tool.returncode}")
    return rate, np.frombuffer(pcm, np.int16)


def _trimmed(pcm: np.ndarray) -> np.ndarray:
    """Without the silence at both ends."""
    block = RATE // 100
    count = len(pcm) // block
    blocks = pcm[: count * block].reshape(count, block).astype(np.float64)
    loud = np.flatnonzero(np.sqrt((blocks**2).mean(axis=1)) > 200)
    if not len(loud):
        return pcm
    return pcm[max(0, loud[0] - 1) * block : (loud[-1] + 2) * block]


def _levelled(pcm: np.ndarray) -> np.ndarray:
    samples = pcm.astype(np.float64)
    active = samples[np.abs(samples) > 300]
    if not len(active):
        return pcm
    gain = 32768 * 10 ** (LEVEL_DB / 20) / np.sqrt((active**2).mean())
    return np.asarray(np.clip(samples * gain, -32000, 32000), np.int16)
