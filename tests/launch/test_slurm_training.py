"""Real training (local engine, on CPUs) in jobs of a real Slurm that are disturbed in every way a cluster knows.

All jobs run at once in one lab: each scenario submits its own, does to it what the cluster would, and waits for its
end in a thread; the tests then hold what is left against an uninterrupted run.  Where a run must not get on while
Slurm takes its time, its processes are stopped (SIGSTOP), so that no outcome depends on how quick the machine is.
"""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from support.slurm_jobs import LaunchedJob, last_step, launch, send, steps_of, thinkprune
from support.slurm_lab import SlurmLab, require_slurm, slurm_lab
from support.tiny_runs import RECIPE, records

from nemo_thinkprune.launch.watchdog import POLL_S
from nemo_thinkprune.recipe.load import dump_yaml, load_recipe
from nemo_thinkprune.rounds.quickstart import make_data, place
from nemo_thinkprune.training.watch import FORGIVEN_GAP_S

STEPS = 16
SETTINGS = (
    "thinkprune.limits=[60]",
    "thinkprune.long_limit=60",
    "thinkprune.length_reward.name=l1_exact",  # it rewards what a model of random weights writes, too
    "thinkprune.length_reward.params={alpha: 0.02, target: 12}",
    f"grpo.max_num_steps={STEPS}",
    "grpo.num_prompts_per_step=4",
    "grpo.num_generations_per_prompt=4",
    "grpo.max_val_samples=16",
    "grpo.val_period=4",
    "checkpointing.save_period=2",
    "policy.megatron_cfg.optimizer.lr=1e-3",
)
MINUTES = 30
LOCAL = ("--engine", "local", "--nodes", "1", "--time", str(MINUTES))
SHARED = ("--cpus-per-node", "2", "--sbatch=--nodelist=n3")  # n1 and n2 are for the job whose node dies
STALL_FLOOR_S = 15.0
PLANTED = ["/tmp/ray", "/tmp/ray/session_latest", "/tmp/thinkprune-1"]  # somebody else's, on every node


class Place:
    """The lab, the recipe that all jobs train, and the folder of their runs."""

    def __init__(self, lab: SlurmLab, folder: Path) -> None:
        self._one_at_a_time = threading.Lock()
        self.lab, self.folder = lab, folder
        self.recipe = folder / "recipe.yaml"
        self.before = {node: programs(lab, node) for node in lab.nodes}

    def launch(self, name: str, *options: str, shared: bool = True) -> LaunchedJob:
        where = SHARED if shared else ("--sbatch=--exclude=n3",)
        given = (*LOCAL, *where, "--job-name", name, *options)
        with self._one_at_a_time:
            return launch(self.lab, self.recipe, *given, run_dir=self.folder / name)


def programs(lab: SlurmLab, node: str) -> list[tuple[str, ...]]:
    """The command lines of a node's processes, without those that a shell starts for a moment."""
    return sorted(process.argv for process in lab.processes(node) if process.argv[:1] != ("sleep",))


def hold(job: LaunchedJob, *, beyond: int) -> None:
    """Let a run get beyond a step, then stop its ranks."""
    job.wait_step(beyond + 1)
    send(job.ranks(), signal.SIGSTOP)


def give_time(job: LaunchedJob, *, after: int) -> None:
    """Once the job is requeued after an attempt, set back the time limit that was moved close."""
    job.wait_event("requeue", attempt=after)
    job.lab.wait(job.job_id, {"PENDING", "RUNNING"})
    job.lab.run(["scontrol", "update", f"JobId={job.job_id}", f"TimeLimit={MINUTES}"])


def signals(job: LaunchedJob) -> list[str]:
    return [detail for _, name, detail in job.events() if name == "signal"]


# ---- What is done to jobs ---------------------------------------------------------------------------------------


def uninterrupted(at: Place) -> LaunchedJob:
    job = at.launch("uninterrupted")
    job.wait_over()
    return job


def node_dies(at: Place) -> LaunchedJob:
    job = at.launch("node_dies", shared=False)
    job.wait_step(3)
    at.lab.crash(job.attempts()[0].nodes or "")
    job.wait_over()
    return job


def time_limit_saved(at: Place) -> LaunchedJob:
    job = at.launch("time_limit_saved", "--save-ahead", "300")
    for attempt, step in ((1, 2), (2, 7)):
        hold(job, beyond=step)
        at.lab.end_in(job.job_id, 200)
        job.wait_event("signal", "USR1", attempt=attempt)
        send(job.ranks(), signal.SIGCONT)
        give_time(job, after=attempt)
    job.wait_over()
    return job


def time_limit_missed(at: Place) -> LaunchedJob:
    """A step that takes longer than there is from the signal to the limit."""
    job = at.launch("time_limit_missed", "--save-ahead", "10")
    hold(job, beyond=2)
    at.lab.end_in(job.job_id, 35)
    give_time(job, after=1)
    job.wait_over()
    return job


def rank_stalls(at: Place) -> LaunchedJob:
    stall = ("--stall-floor", f"{STALL_FLOOR_S:g}", "--stall-factor", "2")
    job = at.launch("rank_stalls", "--gpus-per-node", "2", *stall)
    job.wait_step(3)
    send(job.ranks()[1:], signal.SIGSTOP)
    job.wait_over()
    return job


def node_freezes(at: Place) -> LaunchedJob:
    """The supervisor cannot tell that a rank hangs, as it hangs itself."""
    job = at.launch("node_freezes", "--stall-floor", f"{STALL_FLOOR_S:g}", "--stall-factor", "2")
    job.wait_step(3)
    send([*job.drivers(), *job.ranks()], signal.SIGSTOP)
    job.wait_over()
    return job


def model_missing(at: Place) -> LaunchedJob:
    """The model is removed while the job waits."""
    model = at.folder / "soon_gone"
    model.symlink_to(at.folder / "model")
    names = (f"policy.model_name={model}", f"policy.tokenizer.name={model}")
    job = at.launch("model_missing", "--sbatch=--hold", *names)
    model.unlink()
    at.lab.run(["scontrol", "release", str(job.job_id)])
    job.wait_over()
    return job


def crashes_always(at: Place) -> LaunchedJob:
    """Python itself does not start."""
    job = at.launch("crashes_always", "--max-failures", "3", "--setup", "export PYTHONHASHSEED=none")
    job.wait_over()
    return job


def crashes_after_saving(at: Place) -> LaunchedJob:
    job = at.launch("crashes_after_saving", "--max-failures", "1")
    job.wait_step(3)
    send(job.ranks(), signal.SIGKILL)
    job.wait_over()
    return job


def cancelled(at: Place) -> LaunchedJob:
    job = at.launch("cancelled")
    job.wait_step(1)
    at.lab.run(["scancel", str(job.job_id)])
    job.wait_over()
    return job


def cancelled_with_save(at: Place) -> LaunchedJob:
    job = at.launch("cancelled_with_save")
    job.wait_step(1)
    thinkprune(at.lab, "launch", "cancel", str(job.job_id), "--save")
    return job


def asked_early(at: Place) -> LaunchedJob:
    """The wish to save and stop comes while Slurm starts the trainer, or Python imports it."""
    job = at.launch("asked_early")
    job.wait_for(lambda: bool(job.starting()), "no trainer", every=0.02)
    job.folder.stop_file.touch()
    at.lab.run(["scancel", "--batch", "--signal=USR1", str(job.job_id)])
    job.wait_over()
    return job


SCENARIOS: tuple[Callable[[Place], LaunchedJob], ...] = (
    time_limit_missed, time_limit_saved, node_dies, rank_stalls, node_freezes, uninterrupted, crashes_after_saving,
    crashes_always, model_missing, cancelled_with_save, cancelled, asked_early,
)  # fmt: skip


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_slurm()
    folder = tmp_path_factory.mktemp("jobs")
    recipe = place(load_recipe(RECIPE, SETTINGS), folder)
    make_data(folder, seed=0, say=lambda _: None)
    (folder / "recipe.yaml").write_text(dump_yaml(recipe))
    with slurm_lab(folder / "lab", shared=[folder], cpus=10) as lab:
        for node in lab.nodes:
            lab.in_node(node, ["mkdir", *PLANTED])
        yield Place(lab, folder)


@pytest.fixture(scope="module")
def jobs(at: Place, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[LaunchedJob]]]:
    """All jobs that the chosen tests ask for, under way."""
    chosen = {item.name.removeprefix("test_") for item in request.session.items}
    chosen |= {"uninterrupted"}
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {run.__name__: pool.submit(run, at) for run in SCENARIOS if run.__name__ in chosen}


def same_as(expected: LaunchedJob, job: LaunchedJob) -> None:
    """Metrics, ledger, responses and weights are those of the uninterrupted run, byte for byte."""
    left, right = records(job.run_dir), records(expected.run_dir)
    extra = set(left.pop("checkpoints")) ^ set(right.pop("checkpoints"))
    assert all(int(name.removeprefix("step_")) % 2 for name in extra), extra  # saved when asked, out of turn
    assert left.keys() == right.keys()
    for name in left:
        assert left[name] == right[name], name


def restarts(job: LaunchedJob) -> int:
    return int(job.lab.job(job.job_id)["Restarts"])


# ---- What must have become of them --------------------------------------------------------------------------------


def test_uninterrupted(jobs: dict[str, Future[LaunchedJob]]) -> None:
    """What the others are held against is a run that learns something, in one attempt."""
    job = jobs["uninterrupted"].result()
    assert job.ends() == [("finished", "finished")] and job.wait_over() == "COMPLETED"
    assert steps_of(job.run_dir) == list(range(1, STEPS + 1))
    rows = [json.loads(row) for row in records(job.run_dir)["metrics"]]
    assert all(row["grad_norm"] > 0 and row["updates"] for row in rows if "validation" not in row)


def test_node_dies(jobs: dict[str, Future[LaunchedJob]]) -> None:
    """Slurm itself starts the job on the other node; the new attempt tells why the old one ended."""
    job = jobs["node_dies"].result()
    assert job.ends() == [("batch_node_lost", None), ("finished", "finished")]
    first, second = job.attempts()
    assert {first.nodes, second.nodes} == {"n1", "n2"} and restarts(job) == 1
    same_as(jobs["uninterrupted"].result(), job)
    assert "the node of the script was lost" in job.status()


def test_time_limit_saved(jobs: dict[str, Future[LaunchedJob]]) -> None:
    """USR1 ahead of the limit: saved, requeued and gone on, as often as it takes."""
    job = jobs["time_limit_saved"].result()
    assert job.ends() == [("saved", "requeue"), ("saved", "requeue"), ("finished", "finished")]
    for attempt in job.attempts()[:2]:
        assert (attempt.code, attempt.signals) == (75, ["USR1"])
        assert re.search(r"stopped as asked with step \d+ saved", attempt.text)
    assert restarts(job) == 2
    same_as(jobs["uninterrupted"].result(), job)


def test_time_limit_missed(jobs: dict[str, Future[LaunchedJob]]) -> None:
    """No step boundary between signal and limit: Slurm ends the attempt, which goes back into the queue."""
    job = jobs["time_limit_missed"].result()
    assert job.ends() == [("time_limit", "requeue"), ("finished", "finished")]
    missed = job.attempts()[0]
    assert missed.signals == ["USR1", "TERM"] and "--save-ahead" in missed.text
    same_as(jobs["uninterrupted"].result(), job)
    assert "time limit" in job.status()


def test_rank_stalls(jobs: dict[str, Future[LaunchedJob]]) -> None:
    """One rank of two hangs, the other waits for it: both stacks are written, and the run goes on."""
    job = jobs["rank_stalls"].result()
    within_bound(job)
    stacks = stacks_of(job)
    assert re.findall(r"^==== pid .*: rank (\d)$", stacks, re.MULTILINE) == ["0", "1"]
    assert stacks.count("worker.py") >= 2 and "stopped by a signal" in stacks
    assert steps_of(job.run_dir) == list(range(1, STEPS + 1))
    ledger = (jobs["uninterrupted"].result().run_dir / "ledger.jsonl").read_bytes()
    assert (
        job.run_dir / "ledger.jsonl"
    ).read_bytes() == ledger  # of one rank; its numbers differ in rounding


def test_node_freezes(jobs: dict[str, Future[LaunchedJob]]) -> None:
    """Only the watchdog, a process of its own, can see that the supervisor hangs as well."""
    job = jobs["node_freezes"].result()
    within_bound(job)
    stacks = stacks_of(job)
    assert "rank 0" in stacks and "supervisor.py" in stacks and "worker.py" in stacks
    same_as(jobs["uninterrupted"].result(), job)


def test_misspelt_key(at: Place) -> None:
    """A mistake in a recipe is told at once, and nothing is submitted or made."""
    run_dir = at.folder / "misspelt"
    command = ["launch", "slurm", str(at.recipe), *LOCAL, "--job-name", "misspelt", "--run-dir", str(run_dir)]
    done = thinkprune(at.lab, *command, "grpo.max_num_stepz=3", check=False)
    assert done.returncode == 2 and "max_num_steps" in done.stderr and "Traceback" not in done.stderr
    assert at.lab.run(["squeue", "--noheader", "--name=misspelt", "--states=all"]).stdout == ""
    assert not run_dir.exists()


def test_model_missing(jobs: dict[str, Future[LaunchedJob]]) -> None:
    """What only the nodes can tell to be missing ends the job at its first attempt."""
    job = jobs["model_missing"].result()
    assert job.ends() == [("user_error", "gave_up")] and job.attempts()[0].code == 2
    assert "soon_gone" in job.attempts()[0].text
    assert job.wait_over() == "FAILED" and restarts(job) == 0


def test_crashes_always(jobs: dict[str, Future[LaunchedJob]]) -> None:
    job = jobs["crashes_always"].result()
    assert job.ends() == [("failed", "requeue"), ("failed", "requeue"), ("failed", "gave_up")]
    assert job.attempts()[-1].then_why == "3 attempts in a row ended without a new checkpoint"
    assert "PYTHONHASHSEED" in job.log("driver.log", attempt=3)
    assert job.wait_over() == "FAILED" and restarts(job) == 2


def test_crashes_after_saving(jobs: dict[str, Future[LaunchedJob]]) -> None:
    """An attempt that saved a checkpoint does not count, even where a single failure is one too many."""
    job = jobs["crashes_after_saving"].result()
    assert job.ends() == [("failed", "requeue"), ("finished", "finished")]
    assert job.attempts()[0].text.startswith("rank 0 of 1 was killed by SIGKILL in phase ")
    same_as(jobs["uninterrupted"].result(), job)


def test_cancelled(jobs: dict[str, Future[LaunchedJob]]) -> None:
    job = jobs["cancelled"].result()
    assert job.ends() == [("cancelled", "stopped")] and signals(job) == ["TERM"]
    assert job.wait_over() == "CANCELLED" and restarts(job) == 0
    job.wait_gone()


def test_cancelled_with_save(jobs: dict[str, Future[LaunchedJob]]) -> None:
    job = jobs["cancelled_with_save"].result()
    assert job.ends() == [("saved", "stopped")] and signals(job) == ["USR1"]
    assert job.wait_over() == "COMPLETED" and restarts(job) == 0
    step = last_step(job.run_dir)
    assert 0 < step < STEPS and (job.run_dir / "checkpoints" / f"step_{step}").is_dir()


def test_asked_early(jobs: dict[str, Future[LaunchedJob]]) -> None:
    """A wish to stop that the trainer could not hear yet is obeyed all the same."""
    job = jobs["asked_early"].result()
    assert job.ends() == [("saved", "stopped")] and signals(job) == ["USR1"]
    assert job.wait_over() == "COMPLETED" and last_step(job.run_dir) < STEPS


def test_nothing_is_left_on_nodes(at: Place, jobs: dict[str, Future[LaunchedJob]]) -> None:
    """After all of them: no process and no file but those that were there before, with names much like ours."""
    for job in [future.result() for future in jobs.values()]:
        job.wait_gone()
    for node in at.lab.nodes:
        if at.lab.processes(node):
            at.lab.wait_node(node)
            assert programs(at.lab, node) == at.before[node]
            # Torch falls back on /tmp when a trainer that scancel ends outlives its private folder.
            files = [path for path in at.lab.node_files(node) if "/torchinductor_" not in path]
            assert files == PLANTED


def within_bound(job: LaunchedJob) -> None:
    """The watchdog's word comes at the first look past its bound; it allows for looks that came late.

    On a machine too busy for its bound it may end a further attempt.
    """
    *stalled, last = job.ends()
    assert stalled and {*stalled} == {("stalled", "requeue")} and last == ("finished", "finished")
    assert job.attempts()[0].code == 76
    log = job.log("watchdog.log")
    told = re.search(
        r"not moved for (\d+) s after step \d+, .*the bound is (\d+) s: 2 x the median step", log
    )
    assert told, log
    silent, bound = int(told[1]), int(told[2])
    look = min(POLL_S, STALL_FLOOR_S / 4)
    assert STALL_FLOOR_S <= bound <= silent <= bound + 2 * look + FORGIVEN_GAP_S + 1


def stacks_of(job: LaunchedJob) -> str:
    return (job.folder.attempt(1) / "stacks" / f"{job.attempts()[0].nodes}.txt").read_text()
