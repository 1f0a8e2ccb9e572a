"""Where the time of a step goes; under a benchmark also its processor time and its peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from nemo_thinkprune.policy.device import settle, take_peak_bytes
from nemo_thinkprune.training.process_tree import processor_seconds


@dataclass(slots=True)
class Use:
    """What a phase took on this rank beside wall time.

    Attributes:
        cpu_s: Seconds of processor time, of all threads of this process and of the processes it started.
        peak: Most bytes held at any time of the phase, the phases inside it included.
        own_peak: Most bytes held in it outside the phases inside it.
    """

    cpu_s: float = 0.0
    peak: int = 0
    own_peak: int = 0

    def add(self, other: Use) -> None:
        """Count a second part of the same phase."""
        self.cpu_s += other.cpu_s
        self.peak, self.own_peak = max(self.peak, other.peak), max(self.own_peak, other.own_peak)


class Meter:
    """Measures phases, nested as they are, on one device: its memory on a GPU, the process's on a CPU.

    It waits for a GPU to be idle at both ends of a phase, and it resets the process's peak of resident memory,
    which other counters of that (`ru_maxrss`) then lose: for benchmarks, not for runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[tuple[float, Use]] = []

    def enter(self) -> None:
        """Begin a phase."""
        settle(self._device)
        self._take_peak()
        self._open.append((processor_seconds(), Use()))

    def settle(self) -> None:
        """Wait until what was asked of the device is done."""
        settle(self._device)

    def leave(self) -> Use:
        """End the phase begun last."""
        self._take_peak()
        began, use = self._open.pop()
        use.cpu_s = processor_seconds() - began
        if self._open:
            outer = self._open[-1][1]
            outer.peak = max(outer.peak, use.peak)
        return use

    def _take_peak(self) -> None:
        peak = take_peak_bytes(self._device)
        if self._open:
            self._open[-1][1].add(Use(peak=peak, own_peak=peak))


@dataclass(slots=True)
class Clock:
    """Seconds per phase of the present step; with a meter also what each phase used."""

    seconds: dict[str, float] = field(default_factory=dict)
    meter: Meter | None = None
    uses: dict[str, Use] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to `name`."""
        if self.meter is not None:
            self.meter.enter()
        start = time.perf_counter()
        try:
            yield
            if self.meter is not None:
                self.meter.settle()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            if self.meter is not None:
                self.uses.setdefault(name, Use()).add(self.meter.leave())

    def told(self) -> dict[str, dict[str, Any]]:
        """Each measured phase as JSON values: seconds, cpu_s, peak and own_peak in bytes."""
        return {
            name: {
                "seconds": self.seconds[name],
                "cpu_s": use.cpu_s,
                "peak": use.peak,
                "own_peak": use.own_peak,
            }
            for name, use in self.uses.items()
        }
