"""How slow a stand-in provider is, and how it fails."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass, field

KINDS = ("refuse", "hang", "cut", "empty")


@dataclass
class Delay:
    """Milliseconds, lognormally spread around their median (`spread` 0 = always the same)."""

    ms: float
    spread: float = 0.0
    seed: int = 1
    _chance: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def seconds(self) -> float:
        """The next delay."""
        return self.ms / 1000 * math.exp(self._chance.gauss(0, self.spread))


@dataclass
class Behavior:
    """One provider's delay, and the faults that its next requests meet."""

    delay: Delay
    faults: deque[str] = field(default_factory=deque)

    def fail(self, kind: str, times: int = 1) -> None:
        """Let the next `times` requests be refused, hang, be cut off, or answer nothing."""
        if kind not in KINDS:
            raise ValueError(f"a fault is one of {', '.join(KINDS)}, not {kind}")
        self.faults.extend([kind] * times)

    def next_fault(self, *kinds: str) -> str:
        """The fault of this request; "" if it works, or would fail in none of these `kinds`."""
        is_due = self.faults and (not kinds or self.faults[0] in kinds)
        return self.faults.popleft() if is_due else ""


async def hang() -> None:
    """Never answer; the other side gives up."""
    await asyncio.Event().wait()
