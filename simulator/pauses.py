"""How often the agent cuts into a pause: `python -m simulator.pauses`, at the worker's defaults.

Callers pause 0.8 s inside 24 sentences; each cut-in is named, and replies are timed.
"""

from __future__ import annotations

import asyncio
import statistics

from simulator.livekit_server import NoLiveKitServer
from simulator.phone import CallOver, Phone
from simulator.studio import Studio

SENTENCES = [
    "I would like to know [0.8] how long delivery takes.",
    "Could you tell me what [0.8] a gift card costs?",
    "How long do I have to [0.8] return something?",
    "My order number is [0.8] four two seven one.",
    "I bought a table and [0.8] one leg is broken.",
    "What does your warranty [0.8] cover for a sofa?",
    "Can you take my old mattress [0.8] when you deliver the new one?",
    "I am calling because [0.8] my parcel has not arrived.",
    "Is it possible to [0.8] pay with a credit card?",
    "We ordered two chairs [0.8] but only one came.",
    "Do your stores [0.8] open on Sundays?",
    "I want to [0.8] cancel my order.",
    "How much is [0.8] furniture delivery?",
    "Could you [0.8] assemble the wardrobe for me?",
    "If I join the club [0.8] do I get free delivery?",
    "The lamp that I bought [0.8] does not work.",
    "Where can I find [0.8] my invoice?",
    "I need spare screws for [0.8] a bookshelf.",
    "Does the mattress [0.8] come with a trial?",
    "When my sofa arrives [0.8] who carries it upstairs?",
    "Can I change the address [0.8] of my delivery?",
    "Please tell me [0.8] how refunds are paid.",
    "Do you match [0.8] the price of another shop?",
    "My name is [0.8] Jordan Miller.",
]


async def ask(phone: Phone, sentence: str) -> tuple[bool, float | None]:
    """Say it; whether the agent began inside it, and ms from its end to the reply."""
    said = await phone.say(sentence)
    was_cut = (sound := phone.ear.first_sound(said.start)) is not None and sound < said.end
    try:
        start, _ = await phone.agent_says(20, since=said.end, quiet_s=1.0)
    except (TimeoutError, asyncio.TimeoutError, CallOver):
        return was_cut, None
    return was_cut, (start - said.end) * 1000


async def measure() -> None:
    cuts, replies = [], []
    async with Studio() as studio:
        await studio.worker()
        phone = await studio.network.dial(from_="+15550142777")
        await phone.agent_says(since=phone.times["dialed"], quiet_s=1.0)
        for sentence in SENTENCES:
            if phone.gone.is_set():
                phone = await studio.network.dial(from_="+15550142777")
                await phone.agent_says(since=phone.times["dialed"], quiet_s=1.0)
            was_cut, reply = await ask(phone, sentence)
            cuts += [sentence] * was_cut
            replies += [reply] if reply is not None and not was_cut else []
            print(f"{'cut in' if was_cut else '':7} {reply or 0:5.0f} ms  {sentence}", flush=True)
        await phone.hang_up()
    print(f"{len(cuts)} cut-ins in {len(SENTENCES)} pauses of 0.8 s; reply after the sentence: ")
    print(f"median {statistics.median(replies):.0f} ms, longest {max(replies):.0f} ms")


if __name__ == "__main__":
    try:
        asyncio.run(measure())
    except NoLiveKitServer as error:
        raise SystemExit(str(error)) from None
