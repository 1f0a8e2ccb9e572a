"""How far another clock is from this one, over a connection that is there anyway (as NTP: RFC 5905, section 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds: sent by our clock, received and answered by theirs, back by ours."""

    sent: float
    received: float
    answered: float
    back: float

    @property
    def offset_s(self) -> float:
        """Their clock less ours, if the ways there and back took the same time."""
        return ((self.received - self.sent) + (self.answered - self.back)) / 2

    @property
    def round_trip_s(self) -> float:
        """Time on the way; the offset is right within half of it."""
        return max(0.0, (self.back - self.sent) - (self.answered - self.received))


def best(samples: Sequence[Sample]) -> Sample:
    """The sample that was least on the way, which is the most exact one."""
    return min(samples, key=lambda sample: sample.round_trip_s)
