"""When is a group of ranks done, stopped, dead or hung: decided from beats and exits alone.

The caller feeds what it saw (`Watch.record`, `Watch.exited`) and asks `Watch.verdict`.  Times are seconds of
the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

EXIT_STOPPED = 75  # EX_TEMPFAIL: what batch systems take as "start me again"
EXIT_USER_ERROR = 2
EXIT_GRACE_S = 30.0
FORGIVEN_GAP_S = 5.0
SETTLE_S = 1.0  # a dying process drops its connections before the kernel says that it is dead

_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
_MEMORY_HINT = (
    "lower policy.generation_batch_size, policy.train_micro_batch_size or "
    "policy.sequence_packing.train_mb_tokens, or spread the model over more ranks"
)


class FailureKind(StrEnum):
    """What ended a job that did not end by itself."""

    KILLED = "killed"
    EXITED = "exited"
    RAISED = "raised"
    OUT_OF_MEMORY = "out_of_memory"
    STALLED = "stalled"
    USER_ERROR = "user_error"


@dataclass(frozen=True, slots=True)
class Done:
    """Every rank finished its work."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The ranks saved at a step boundary and left, as they were asked to."""

    step: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The job must end: why, the rank that caused it, and where all ranks were (a line each)."""

    kind: FailureKind
    rank: int
    reason: str
    positions: str = ""


Verdict = Done | Stopped | Failure


@dataclass(slots=True)
class RankState:
    """What is known of one rank."""

    rank: int
    last_beat: float
    phase: str = "launch"
    step: int = 0
    ready: bool = False
    paused_since: float | None = None
    finished_at: float | None = None
    stopped_step: int | None = None
    error: dict[str, Any] | None = None
    error_seen: float = 0.0
    exit_code: int | None = None
    exited_at: float | None = None

    @property
    def alive(self) -> bool:
        """Whether its process has not ended."""
        return self.exit_code is None

    @property
    def complete(self) -> bool:
        """Whether it did all of its work, be it that its process still lingers."""
        return self.exit_code in (0, EXIT_STOPPED) or (self.alive and self.finished_at is not None)

    def where(self) -> str:
        """Its position in words."""
        return f"phase {self.phase} of step {self.step}"


@dataclass(slots=True)
class Watch:
    """State of all ranks of one attempt."""

    world: int
    stall_timeout_s: float
    now: float
    ranks: list[RankState] = field(init=False)
    _asked: float = field(init=False)

    def __post_init__(self) -> None:
        self.ranks = [RankState(rank, self.now) for rank in range(self.world)]
        self._asked = self.now

    def record(self, rank: int, message: dict[str, Any], now: float) -> None:
        """Take in one message of a worker (see worker.RankContext)."""
        state = self.ranks[rank]
        state.last_beat = max(state.last_beat, now)
        kind = message.get("kind")
        if kind == "beat":
            state.phase, state.step = str(message["phase"]), int(message["step"])
        elif kind == "ready":
            state.ready = True
        elif kind in ("error", "user_error") and state.error is None:
            state.error, state.error_seen = message, now
        elif kind == "finished":
            state.finished_at, state.stopped_step = now, message.get("stopped_step")

    def exited(self, rank: int, code: int, now: float) -> None:
        """Take in the end of a worker's process; a negative code is the signal that killed it."""
        state = self.ranks[rank]
        state.exit_code, state.exited_at = code, now

    def paused(self, ranks: Collection[int], now: float) -> None:
        """Take in which processes do not run now because a signal (SIGSTOP) or a debugger stopped them."""
        for state in self.ranks:
            if state.rank not in ranks:
                state.paused_since = None
            elif state.paused_since is None:
                state.paused_since = now

    def verdict(self, now: float) -> Verdict | None:
        """What to do: None to go on waiting."""
        self._forgive_gap(now)
        if (mistake := self._mistake()) is not None:
            return mistake
        complete = all(state.complete for state in self.ranks)
        if (failure := self._death(now) or (None if complete else self._stall(now))) is not None:
            return replace(failure, positions=self.positions(now))
        return self._end(now) if complete else None

    def positions(self, now: float) -> str:
        """A line for each rank: where it is and how long it has been silent."""
        return "\n".join(f"rank {state.rank}: {_position(state, now)}" for state in self.ranks)

    def _forgive_gap(self, now: float) -> None:
        """Blame nobody for a time in which the supervisor itself did not run (Ctrl-Z, a slow callback)."""
        gap, self._asked = now - self._asked, now
        if gap > FORGIVEN_GAP_S:
            for state in self.ranks:
                state.last_beat = min(state.last_beat + gap, now)
                if state.paused_since is not None:
                    state.paused_since = min(state.paused_since + gap, now)

    def _mistake(self) -> Failure | None:
        """A mistake of the user wins over everything, as all ranks may report it or die of it."""
        for state in self.ranks:
            if state.error is not None and state.error["kind"] == "user_error":
                return Failure(FailureKind.USER_ERROR, state.rank, str(state.error["message"]))
        return None

    def _death(self, now: float) -> Failure | None:
        """The death that came first; a killed rank before the exceptions that its peers raise about it."""
        killed = [s for s in self.ranks if s.error is None and s.exit_code is not None and s.exit_code < 0]
        if killed:
            return self._killed(min(killed, key=_death_time))
        raised = [s for s in self.ranks if s.error is not None]
        if raised:
            unheard = any(s.alive and s.error is None for s in self.ranks)
            if unheard and now - min(s.error_seen for s in raised) < SETTLE_S:
                return None
            return self._raised(min(raised, key=_death_time))
        exited = [s for s in self.ranks if s.exit_code not in (None, 0, EXIT_STOPPED)]
        if exited:
            state = min(exited, key=_death_time)
            return Failure(
                FailureKind.EXITED,
                state.rank,
                f"rank {state.rank} of {self.world} left with exit code {state.exit_code} in {state.where()}",
            )
        return None

    def _killed(self, state: RankState) -> Failure:
        number = -(state.exit_code or 0)
        name = signal.Signals(number).name if number in _signals() else f"signal {number}"
        reason = f"rank {state.rank} of {self.world} was killed by {name} in {state.where()}"
        if number == signal.SIGKILL:
            hint = f"most often the kernel does so when memory runs out (see dmesg); then {_MEMORY_HINT}"
            return Failure(FailureKind.KILLED, state.rank, f"{reason}: {hint}")
        return Failure(FailureKind.KILLED, state.rank, reason)

    def _raised(self, state: RankState) -> Failure:
        error = state.error or {}
        what = f"{error['type']}: {error['message']}"
        reason = f"rank {state.rank} of {self.world} failed in {state.where()} with {what}"
        if error["type"] in _OUT_OF_MEMORY:
            return Failure(FailureKind.OUT_OF_MEMORY, state.rank, f"{reason}\nout of memory: {_MEMORY_HINT}")
        return Failure(FailureKind.RAISED, state.rank, reason)

    def _end(self, now: float) -> Verdict | None:
        """All work is done; processes that linger in their exit handlers get a little time for it."""
        lingering = [s for s in self.ranks if s.alive]
        if any(now - (s.finished_at or now) < EXIT_GRACE_S for s in lingering):
            return None
        stopped = [s for s in self.ranks if s.exit_code == EXIT_STOPPED or s.stopped_step is not None]
        if not stopped:
            return Done()
        return Stopped(max(s.step if s.stopped_step is None else s.stopped_step for s in stopped))

    def _stall(self, now: float) -> Failure | None:
        """A rank that is stopped, or silence of all: one that waits, or waited until now, for a peer is not hung."""
        working = [s for s in self.ranks if not s.complete]
        stopped = [s for s in working if s.paused_since is not None]
        frozen = [s for s in stopped if now - (s.paused_since or now) > self.stall_timeout_s]
        if not frozen and any(now - s.last_beat <= self.stall_timeout_s for s in self.ranks):
            return None
        # In silence a stopped rank is to blame before those that wait for it, else the one silent for longest.
        state = min(frozen or stopped or working, key=lambda s: s.last_beat)
        return Failure(
            FailureKind.STALLED,
            state.rank,
            f"rank {state.rank} of {self.world} {_silence(state, now)} in {state.where()} "
            f"(thinkprune.runtime.stall_timeout_s = {self.stall_timeout_s:g})",
        )


def _signals() -> Iterable[int]:
    return {int(member) for member in signal.Signals}


def _death_time(state: RankState) -> float:
    if state.error is not None:
        return float(state.error["time"])
    return state.exited_at if state.exited_at is not None else float("inf")


def _silence(state: RankState, now: float) -> str:
    if state.paused_since is not None:
        return f"has been stopped by a signal for {now - state.paused_since:.1f} s"
    return f"gave no sign of life for {now - state.last_beat:.1f} s"


def _position(state: RankState, now: float) -> str:
    if state.exit_code is not None:
        return f"ended with {state.exit_code}, last in {state.where()}"
    if not state.ready:
        return "not started yet"
    paused = "" if state.paused_since is None else ", stopped by a signal"
    return f"in {state.where()}, last sign of life {now - state.last_beat:.1f} s ago{paused}"
