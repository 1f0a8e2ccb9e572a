from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.stopping import stop_signals
from nemo_thinkprune.training.supervisor import Event, JobFailed, JobStopped, run_job
from nemo_thinkprune.training.watch import FailureKind

MakeJob = Callable[..., Job]
HERE = Path(__file__).parent
# Far above what is needed on an idle machine; far below the 300 s that the fake entries sleep.
SOON_S = 60.0
# Longer than a worker needs to start on a busy machine.
STALL_S = 4.0


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture(autouse=True)
def _nothing_left() -> object:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def failure_of(job: Job, entry: str) -> JobFailed:
    start = time.monotonic()
    with pytest.raises(JobFailed) as caught:
        run_job(job, entry=f"fake_entries:{entry}")
    assert time.monotonic() - start < SOON_S
    return caught.value


def test_all_events_of_all_ranks_arrive_before_the_job_returns(make_job: MakeJob) -> None:
    events: list[Event] = []
    run_job(make_job(), on_event=events.append, entry="fake_entries:finish")
    assert {(e.rank, e.phase, e.step) for e in events} == {
        (0, "generate", 1),
        (1, "generate", 1),
        (0, "step", 1),
    }
    last = next(e for e in events if e.phase == "step")
    assert last.row == {"reward_mean": 0.5, "text": "x" * 100_000}
    assert (last.total, last.extra) == (1, {"produced": "a model"})


def test_an_engine_with_workers_of_its_own_is_one_process_with_its_own_environment(make_job: MakeJob) -> None:
    events: list[Event] = []
    path = os.pathsep.join([str(HERE), "/of/the/engine"])
    run_job(
        make_job(world=16),
        on_event=events.append,
        entry="fake_entries:tell_place",
        processes=1,
        environment=lambda attempt: {"PYTHONPATH": path, "OMP_NUM_THREADS": "7"},
    )
    assert [event.extra for event in events] == [{"world": 1, "path": path, "threads": "7", "searched": True}]


def test_a_rank_killed_by_a_signal_is_named_before_the_peers_that_break_on_it(make_job: MakeJob) -> None:
    failed = failure_of(make_job(), "kill_self")
    assert (failed.kind, failed.rank) == (FailureKind.KILLED, 1)
    assert "rank 1 of 2 was killed by SIGKILL in phase update of step 7" in failed.reason
    assert "memory" in failed.reason


def test_a_rank_that_exits_is_named_with_its_code_and_the_end_of_its_log(make_job: MakeJob) -> None:
    failed = failure_of(make_job(), "exit_three")
    assert (failed.kind, failed.rank) == (FailureKind.EXITED, 1)
    assert "exit code 3 in phase score of step 2" in failed.reason
    assert "about to leave with three" in str(failed)
    report = failed.report.read_text()
    assert "stacks of rank 0" in report and "in wait" in report
    assert "already ended" in report


def test_the_first_exception_is_the_cause(make_job: MakeJob) -> None:
    failed = failure_of(make_job(), "raise_error")
    assert (failed.kind, failed.rank) == (FailureKind.RAISED, 1)
    assert "ZeroDivisionError: a made-up error" in failed.reason
    assert "raise ZeroDivisionError" in failed.log.read_text()


def test_running_out_of_memory_says_what_to_lower(make_job: MakeJob) -> None:
    failed = failure_of(make_job(world=1), "run_out_of_memory")
    assert failed.kind is FailureKind.OUT_OF_MEMORY
    assert "train_micro_batch_size" in failed.reason


def test_a_user_error_in_a_worker_is_a_user_error_here(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match=r"^the data file is empty: give one with problems$"):
        run_job(make_job(), entry="fake_entries:user_error")


def test_a_silent_rank_ends_the_job_with_the_stacks_of_all_ranks(make_job: MakeJob) -> None:
    failed = failure_of(make_job(stall_s=STALL_S), "sleep_on_rank_one")
    assert (failed.kind, failed.rank) == (FailureKind.STALLED, 1)
    assert "phase generate of step 3" in failed.reason
    report = failed.report.read_text()
    assert "in hang_here" in report and "in wait_for_peer" in report


def test_a_rank_that_waits_while_another_works_for_long_is_not_hung(make_job: MakeJob) -> None:
    run_job(make_job(stall_s=1.5), entry="fake_entries:pulse_while_the_other_waits")


def test_an_error_is_told_before_the_session_ends(make_job: MakeJob) -> None:
    failed = failure_of(make_job(world=1), "raise_in_a_session_that_hangs_at_its_end")
    assert failed.kind is FailureKind.RAISED and "ZeroDivisionError: a made-up error" in failed.reason
    assert failed.log.read_text().count("raise ZeroDivisionError") == 1
    with pytest.raises(UserError, match=r"^give another file$"):
        run_job(make_job(world=1), entry="fake_entries:user_error_in_a_session_that_hangs")


def test_a_stopped_process_still_gives_its_stacks(make_job: MakeJob) -> None:
    failed = failure_of(make_job(stall_s=STALL_S), "stop_self")
    assert (failed.kind, failed.rank) == (FailureKind.STALLED, 1)
    report = failed.report.read_text()
    assert "in stopped_here" in report and "in pulse_forever" in report


def test_a_rank_that_ignores_signals_does_not_survive_a_failure(make_job: MakeJob) -> None:
    failed = failure_of(make_job(), "deaf")
    assert (failed.rank, failed.kind) == (1, FailureKind.EXITED)


def test_children_of_workers_die_with_a_failed_job(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "fail").touch()
    failed = failure_of(make_job(), "with_grandchildren")
    assert failed.kind is FailureKind.KILLED and "SIGSEGV" in failed.reason
    assert_gone(worker_pids(tmp_path / "run"))


def test_an_exception_in_the_listener_leaves_no_process(make_job: MakeJob, tmp_path: Path) -> None:
    def listener(event: Event) -> None:
        worker_pids(tmp_path / "run")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(make_job(), on_event=listener, entry="fake_entries:with_grandchildren")
    assert_gone(worker_pids(tmp_path / "run"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_parent_saves_and_stops(make_job: MakeJob, tmp_path: Path, number: int) -> None:
    job = make_job()
    before = signal.getsignal(number)

    def listener(event: Event) -> None:
        if event.step == 1 and event.rank == 0:
            os.kill(os.getpid(), number)

    with pytest.raises(JobStopped) as caught:
        run_job(job, on_event=listener, entry="fake_entries:until_stopped")
    saved = [int((tmp_path / "run" / f"saved_{rank}").read_text()) for rank in range(2)]
    assert caught.value.step == max(saved)
    assert signal.getsignal(number) is before


def ask_to_stop(event: Event) -> None:
    if event.rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_on_the_last_step_is_not_taken_for_the_end(make_job: MakeJob) -> None:
    with pytest.raises(JobStopped, match="just ended") as caught:
        run_job(make_job(), on_event=ask_to_stop, entry="fake_entries:saves_on_the_last_step")
    assert caught.value.step is None


def test_an_evaluation_is_ended_at_once_as_it_has_nothing_to_save(make_job: MakeJob) -> None:
    start = time.monotonic()
    with pytest.raises(JobStopped, match="evaluation saves nothing"):
        run_job(make_job(kind="eval"), on_event=ask_to_stop, entry="fake_entries:evaluates_for_long")
    assert time.monotonic() - start < SOON_S


def test_without_checkpoints_nothing_is_said_to_be_saved(make_job: MakeJob) -> None:
    job = make_job()
    job = make_job(recipe=with_values(job.recipe, {"checkpointing.enabled": False}))
    with pytest.raises(JobStopped, match=r"nothing saved, as checkpointing\.enabled is false"):
        run_job(job, on_event=ask_to_stop, entry="fake_entries:until_stopped")


def test_a_stop_that_came_before_the_job_starts_no_process(make_job: MakeJob) -> None:
    job = make_job()
    with stop_signals() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(JobStopped):
            run_job(job, entry="fake_entries:finish")
        assert outer.is_set()
    assert not job.run_dir.exists()


def test_whoever_holds_the_signals_around_a_job_hears_of_them(make_job: MakeJob) -> None:
    with stop_signals() as outer:
        with pytest.raises(JobStopped):
            run_job(make_job(), on_event=ask_to_stop, entry="fake_entries:until_stopped")
        assert outer.is_set()


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_a_run_folder_that_cannot_be_made_is_a_user_error(
    make_job: MakeJob, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        run_job(make_job(run_dir=tmp_path / place), entry="fake_entries:finish")


def test_a_stop_asked_for_before_the_workers_are_up_is_kept(make_job: MakeJob, tmp_path: Path) -> None:
    parent = start_parent(make_job(), "until_stopped")
    wait_for(lambda: (tmp_path / "run" / "logs" / "attempt_1" / "rank_1.log").exists())
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=SOON_S) == 75


def test_nothing_survives_a_killed_parent_and_the_folder_is_free_again(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job()
    parent = start_parent(job, "with_grandchildren")
    pids = worker_pids(tmp_path / "run")
    assert len(pids) == 5 and all(psutil.pid_exists(pid) for pid in pids)
    parent.kill()
    parent.wait()
    assert_gone(pids)
    run_job(job, entry="fake_entries:finish")
    assert (tmp_path / "run" / "logs" / "attempt_2" / "rank_1.log").exists()


def test_two_jobs_cannot_share_a_run_folder(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_thinkprune.training.attempts.LOCK_PATIENCE_S", 0.2)
    job = make_job()
    parent = start_parent(job, "until_stopped")
    wait_for(lambda: (tmp_path / "run" / "started_1").exists())
    with pytest.raises(UserError, match=f"in use by process {parent.pid}"):
        run_job(job, entry="fake_entries:finish")
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=SOON_S) == 75


def test_a_finished_rank_that_does_not_exit_does_not_hold_up_the_job(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_thinkprune.training.watch.EXIT_GRACE_S", 0.2)
    run_job(make_job(world=1), entry="fake_entries:lingers")


def test_the_parent_imports_no_torch() -> None:
    code = "import sys, nemo_thinkprune.training.supervisor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PARENT = """
import sys
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.supervisor import JobStopped, run_job
try:
    run_job(Job.read(sys.argv[1]), entry=sys.argv[2])
except JobStopped:
    sys.exit(75)
"""


def start_parent(job: Job, entry: str) -> subprocess.Popen[bytes]:
    path = job.run_dir.parent / "job.json"
    job.write(path)
    return subprocess.Popen([sys.executable, "-c", PARENT, str(path), f"fake_entries:{entry}"])


def worker_pids(run_dir: Path) -> list[int]:
    files = [run_dir / f"pids_{rank}" for rank in range(2)]
    wait_for(lambda: all(file.exists() for file in files))
    return [int(word) for file in files for word in file.read_text().split()]


def assert_gone(pids: list[int]) -> None:
    wait_for(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
