"""A job ends as it was asked to, on a real Slurm: at once, or saved and not started again."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest
from support.launched_runs import job_records, train_folder
from support.slurm_lab import SlurmLab

from nemo_thinkprune.launch import slurm as queries
from nemo_thinkprune.launch.cancel import Cancelled, cancel
from nemo_thinkprune.launch.events import JobFolder
from nemo_thinkprune.launch.status import status
from nemo_thinkprune.recipe.errors import UserError

# What matters here of the script of `thinkprune launch`: it saves on USR1, and requeues itself unless told not to.
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=tp-test --time=5 --requeue --output=/dev/null
run={run}
job_dir=$run/logs/job_$SLURM_JOB_ID
attempt=$((${{SLURM_RESTART_COUNT:-0}} + 1))
mkdir -p "$job_dir/attempt_$attempt"
event() {{ printf '%s\\t%s\\t%s\\t%s\\n' "$(date -u +%FT%TZ)" "$attempt" "$1" "$2" >> "$job_dir/events.tsv"; }}
save() {{
  {before_saving}
  cp -r "$run/checkpoints/step_2" "$run/checkpoints/step_9"
  event end "saved code=75 with step 9 saved"
  if [ -e "$job_dir/stop" ]; then event stopped "as asked"; exit 0; fi
  event requeue "after saved"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60
}}
trap save USR1
event start "nodes=$SLURM_JOB_NODELIST head=n1"
sleep 100 & wait
"""


@pytest.fixture
def here(slurm: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> SlurmLab:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.environment[name])
    return slurm


def submitted(run: Path, *, before_saving: str = ":", hold: bool = False) -> int:
    """A job of a run folder with a checkpoint of step 2; it runs, or is held in the queue."""
    train_folder(run, steps=5, saved=2)
    (run / "launch.sbatch").write_text(SCRIPT.format(run=shlex.quote(str(run)), before_saving=before_saving))
    job = queries.submit(run / "launch.sbatch", arguments=["--hold"] if hold else [])
    deadline = time.monotonic() + 20
    while not hold and not JobFolder(run, str(job)).events():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job


def cancelled(
    job: int | Path, *, save: bool = False, timeout_s: float | None = None
) -> tuple[Cancelled, str]:
    said: list[str] = []
    done = cancel(str(job), save=save, timeout_s=timeout_s, say=said.append, poll_s=0.2)
    return done, "\n".join(said)


def test_a_running_job_ends_and_its_checkpoint_is_told(here: SlurmLab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submitted(run)
    done, said = cancelled(run)
    assert (done.job_id, done.over, done.state) == (job, True, "CANCELLED")
    assert done.checkpoint is not None and done.checkpoint.step == 2
    assert f"Left:     step 2, {run}/checkpoints/step_2" in said and f"sbatch {run}/launch.sbatch" in said
    done, said = cancelled(job)
    assert done.over and f"Job {job} is over already: CANCELLED." in said


def test_a_running_job_saves_and_does_not_come_back(here: SlurmLab, tmp_path: Path) -> None:
    run = tmp_path / "run with spaces"
    job = submitted(run, before_saving="sleep 1")
    done, said = cancelled(job, save=True)
    assert (done.over, done.state) == (True, "COMPLETED")
    assert done.checkpoint is not None and done.checkpoint.step == 9
    assert f"Job {job} is asked to save" in said
    assert f"Saved:    step 9, {run}/checkpoints/step_9" in said and f"sbatch '{run}/launch.sbatch'" in said
    assert (
        "saved and stopped (code 75): with step 9 saved; not requeued (as asked)" in status(str(job)).text()
    )


def test_a_job_that_requeued_itself_all_the_same_is_cancelled_in_the_queue(
    here: SlurmLab, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submitted(run, before_saving=f"rm {shlex.quote(str(run))}/logs/job_$SLURM_JOB_ID/stop")
    done, said = cancelled(job, save=True)
    assert (done.over, done.state) == (True, "CANCELLED") and "cancelled in the queue" in said
    assert done.checkpoint is not None and done.checkpoint.step == 9


@pytest.mark.parametrize("save", [False, True])
def test_a_job_in_the_queue_is_cancelled(here: SlurmLab, tmp_path: Path, save: bool) -> None:
    job = submitted(tmp_path / "run", hold=True)
    done, said = cancelled(job, save=save)
    assert (done.over, done.state) == (True, "CANCELLED")
    assert (
        "was waiting for nodes; cancelled" in said and not JobFolder(tmp_path / "run", str(job)).path.exists()
    )


def test_a_job_that_takes_long_to_save_is_left_to_it(here: SlurmLab, tmp_path: Path) -> None:
    job = submitted(tmp_path / "run", before_saving="sleep 30 || exit 1")
    done, said = cancelled(job, save=True, timeout_s=1)
    assert (done.over, done.state) == (False, "RUNNING")
    assert "not over yet (RUNNING): it may still be saving" in said
    assert JobFolder(tmp_path / "run", str(job)).stop_file.exists()
    done, said = cancelled(job)
    assert done.over and "Left:     step 2" in said


def test_a_run_without_a_checkpoint_is_told_of(here: SlurmLab, tmp_path: Path) -> None:
    (tmp_path / "launch.sbatch").write_text("#!/bin/bash\n#SBATCH --output=/dev/null\nsleep 100\n")
    job = queries.submit(tmp_path / "launch.sbatch", arguments=["--hold"])
    assert "No checkpoint was saved" in cancelled(job)[1]


def test_jobs_of_others_are_not_asked_to_save(here: SlurmLab, tmp_path: Path) -> None:
    (tmp_path / "other.sh").write_text("#!/bin/bash\n#SBATCH --output=/dev/null\nsleep 100\n")
    job = queries.submit(tmp_path / "other.sh")
    deadline = time.monotonic() + 20
    while (info := queries.job_info(job)) is not None and info.pending:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(UserError, match="cannot be asked to save: leave --save away"):
        cancelled(job, save=True)
    assert cancelled(job)[0].over


def test_what_slurm_does_not_know_cannot_be_cancelled(here: SlurmLab, tmp_path: Path) -> None:
    job_records(tmp_path, 987654, "2026-11-21T10:00:00Z 1 start nodes=n1 head=n1")
    with pytest.raises(UserError, match="nothing was cancelled: Slurm does not know job 987654"):
        cancelled(tmp_path)
    with pytest.raises(UserError, match="does not know job 987654"):
        cancelled(987654)


def test_without_slurm_nothing_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_records(tmp_path, 7, "2026-11-21T10:00:00Z 1 start nodes=n1 head=n1")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="nothing was cancelled: squeue is not on this machine"):
        cancelled(tmp_path)
