"""Parts of a memory plan: what is held, in which phase, on which pipeline stage.

Phases follow one another on the same device: they are compared, never added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GIB = 2**30
PHASES = ("load", "generate", "log-probs", "forward/backward", "optimizer", "refit", "save")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is held: a name and its bytes. `assumed` says whose word a number is that nothing here gives."""

    name: str
    bytes: int
    assumed: str | None = None


@dataclass(frozen=True, slots=True)
class PhaseMemory:
    """What one device holds at the peak of a phase; `stage` is the pipeline stage it belongs to."""

    phase: str
    stage: int
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """The sum of the parts."""
        return sum(part.bytes for part in self.parts)


def phase(name: str, stage: int, parts: Iterable[Part]) -> PhaseMemory:
    """A phase of the parts that are there: those of 0 bytes are left out."""
    return PhaseMemory(name, stage, tuple(part for part in parts if part.bytes))


def worst(phases: Sequence[PhaseMemory]) -> PhaseMemory:
    """The phase and stage that need most; the first of equals."""
    return max(phases, key=lambda one: one.bytes)
