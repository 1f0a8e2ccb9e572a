from __future__ import annotations

import signal

import pytest

from nemo_thinkprune.training.watch import (
    EXIT_GRACE_S,
    EXIT_STOPPED,
    SETTLE_S,
    Done,
    Failure,
    FailureKind,
    Stopped,
    Watch,
)


def watch_of(world: int = 2, stall_s: float = 10.0) -> Watch:
    watch = Watch(world, stall_s, 0.0)
    for rank in range(world):
        watch.record(rank, {"kind": "ready"}, 0.0)
    return watch


def beat(phase: str, step: int) -> dict[str, object]:
    return {"kind": "beat", "phase": phase, "step": step}


def error(at: float, kind: str = "error") -> dict[str, object]:
    return {"kind": kind, "type": "RuntimeError", "message": f"raised at {at}", "time": at}


def ask_each_second(watch: Watch, start: int, stop: int) -> Failure | None:
    """The first verdict between two times, as the supervisor would find it."""
    for second in range(start, stop):
        if (verdict := watch.verdict(float(second))) is not None:
            assert isinstance(verdict, Failure)
            return verdict
    return None


def test_no_verdict_while_all_ranks_work() -> None:
    watch = watch_of()
    for second in range(1, 100):
        for rank in range(2):
            watch.record(rank, {"kind": "pulse"}, second)
        assert watch.verdict(float(second)) is None


def test_done_only_when_the_last_rank_has_left() -> None:
    watch = watch_of()
    watch.exited(0, 0, 1.0)
    assert watch.verdict(1.0) is None
    watch.exited(1, 0, 2.0)
    assert watch.verdict(2.0) == Done()


def test_stopped_when_one_rank_left_early_although_another_was_done() -> None:
    watch = watch_of()
    watch.record(0, {"kind": "finished", "stopped_step": 6}, 1.0)
    watch.exited(0, EXIT_STOPPED, 1.0)
    watch.exited(1, 0, 1.0)
    assert watch.verdict(1.0) == Stopped(6)


def test_the_rank_silent_longest_is_blamed_with_phase_and_step() -> None:
    watch = watch_of()
    watch.record(1, beat("update", 8), 1.0)
    watch.record(0, beat("update", 8), 3.0)
    assert ask_each_second(watch, 1, 14) is None
    failure = ask_each_second(watch, 14, 20)
    assert failure is not None and (failure.kind, failure.rank) == (FailureKind.STALLED, 1)
    assert "rank 1 of 2" in failure.reason and "phase update of step 8" in failure.reason


def test_a_stopped_rank_is_blamed_although_a_waiting_one_is_silent_for_longer() -> None:
    watch = watch_of()
    watch.record(1, beat("save", 2), 5.0)
    watch.paused({1}, 5.0)
    failure = ask_each_second(watch, 1, 17)
    assert failure is not None and failure.rank == 1
    assert "rank 1 of 2 has been stopped by a signal for 11.0 s in phase save" in failure.reason
    assert (
        "rank 1: in phase save of step 2, last sign of life 11.0 s ago, stopped by a signal"
        in failure.positions
    )


def test_a_rank_that_waits_for_a_busy_peer_is_not_blamed_however_long() -> None:
    watch = watch_of()
    for second in range(1, 100):
        watch.record(1, {"kind": "pulse"}, second)
        assert watch.verdict(float(second)) is None


def test_a_stopped_rank_ends_the_job_within_the_bound_although_its_peers_pulse() -> None:
    watch = watch_of()
    for second in range(1, 21):
        watch.record(0, {"kind": "pulse"}, second)
        if second < 10:
            watch.record(1, {"kind": "pulse"}, second)
        watch.paused({1} if second >= 10 else (), second)
        assert watch.verdict(float(second)) is None
    watch.record(0, {"kind": "pulse"}, 20.5)
    failure = watch.verdict(20.5)
    assert isinstance(failure, Failure) and (failure.kind, failure.rank) == (FailureKind.STALLED, 1)


def test_a_debugger_that_stops_a_waiting_rank_for_a_moment_ends_nothing() -> None:
    watch = watch_of()
    for second in range(1, 100):
        watch.record(0, {"kind": "pulse"}, second)
        watch.paused({1} if second % 5 == 0 else (), second)
        assert watch.verdict(float(second)) is None


def test_a_rank_that_never_starts_is_a_stall_too() -> None:
    watch = Watch(1, 10.0, 0.0)
    failure = ask_each_second(watch, 1, 12)
    assert failure is not None and "phase launch of step 0" in failure.reason
    assert watch.positions(11.0) == "rank 0: not started yet"


def test_a_finished_rank_waiting_for_others_is_not_silent() -> None:
    watch = watch_of()
    watch.record(0, {"kind": "finished", "stopped_step": None}, 1.0)
    for second in range(1, 100):
        watch.record(1, {"kind": "pulse"}, second)
        assert watch.verdict(float(second)) is None


def test_a_supervisor_that_did_not_run_blames_nobody() -> None:
    watch = watch_of()
    assert watch.verdict(1.0) is None
    assert watch.verdict(5000.0) is None
    failure = ask_each_second(watch, 5001, 5020)
    assert failure is not None and failure.kind is FailureKind.STALLED


def test_lingering_processes_get_their_grace_and_no_more() -> None:
    watch = watch_of(1)
    watch.record(0, {"kind": "finished", "stopped_step": None}, 1.0)
    assert watch.verdict(1.0 + EXIT_GRACE_S / 2) is None
    assert watch.verdict(1.0 + EXIT_GRACE_S) == Done()


def test_a_killed_rank_wins_over_the_errors_of_its_peers_seen_earlier() -> None:
    watch = watch_of(3)
    watch.record(0, error(1.0), 1.0)
    watch.exited(0, 1, 1.1)
    watch.exited(2, -signal.SIGKILL, 1.2)
    failure = watch.verdict(1.2)
    assert isinstance(failure, Failure) and (failure.kind, failure.rank) == (FailureKind.KILLED, 2)


def test_a_rank_found_killed_shortly_after_its_peers_broke_is_the_cause() -> None:
    watch = watch_of(2)
    watch.record(1, error(1.0), 1.0)
    watch.exited(1, 1, 1.0)
    assert watch.verdict(1.0) is None
    watch.exited(0, -signal.SIGKILL, 1.0 + SETTLE_S / 2)
    failure = watch.verdict(1.0 + SETTLE_S / 2)
    assert isinstance(failure, Failure) and (failure.kind, failure.rank) == (FailureKind.KILLED, 0)


def test_the_earliest_error_by_the_workers_own_clock_wins() -> None:
    watch = watch_of(3)
    watch.record(0, error(5.0), 5.1)
    watch.record(2, error(4.0), 5.2)
    assert watch.verdict(5.2) is None  # rank 1 may be about to be found dead
    failure = watch.verdict(5.1 + SETTLE_S)
    assert isinstance(failure, Failure) and (failure.kind, failure.rank) == (FailureKind.RAISED, 2)


def test_a_user_error_wins_over_everything() -> None:
    watch = watch_of(2)
    watch.exited(1, -signal.SIGKILL, 1.0)
    watch.record(0, error(2.0, "user_error"), 2.0)
    assert watch.verdict(2.0) == Failure(FailureKind.USER_ERROR, 0, "raised at 2.0")


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-signal.SIGSEGV, FailureKind.KILLED, "SIGSEGV"),
        (-signal.SIGKILL, FailureKind.KILLED, "memory"),
        (-(signal.SIGRTMIN + 3), FailureKind.KILLED, "signal 37"),
        (1, FailureKind.EXITED, "exit code 1"),
    ],
)
def test_an_exit_without_a_word_is_named(code: int, kind: FailureKind, words: str) -> None:
    watch = watch_of(1)
    watch.exited(0, code, 1.0)
    failure = watch.verdict(1.0)
    assert isinstance(failure, Failure) and failure.kind is kind and words in failure.reason


def test_running_out_of_gpu_memory_has_its_own_kind() -> None:
    watch = watch_of(1)
    watch.record(0, error(1.0) | {"type": "OutOfMemoryError"}, 1.0)
    failure = watch.verdict(1.0)
    assert isinstance(failure, Failure) and failure.kind is FailureKind.OUT_OF_MEMORY
