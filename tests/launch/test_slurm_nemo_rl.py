"""NeMo-RL's own trainer over the nodes of a real Slurm, through everything that ends an attempt before its time.

Two jobs run side by side in one lab.  One trains on two of n1, n2 and n3 with its tensor-parallel ranks on different
nodes, and each of its attempts is disturbed in another way; the other trains two rounds in peace, its pipeline stages
on n4 and n5.  Both must have made what the local engine makes in one process.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.nemo_rl import require_nemo_rl
from support.same_runs import assert_same_run, responses, rows, steps
from support.slurm_jobs import PROGRAMS, LaunchedJob, last_step, launch, steps_of
from support.slurm_lab import NodeProcess, SlurmLab, require_slurm, slurm_lab
from support.tiny_runs import RECIPE

from nemo_thinkprune.launch.events import Attempt
from nemo_thinkprune.launch.stacks import find_py_spy
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.rounds.quickstart import make_data, place
from nemo_thinkprune.training.checkpoint_files import all_checkpoints

STEPS = 14
LIMITS = (40, 32)
SETTINGS = {
    "thinkprune.limits": list(LIMITS),
    "thinkprune.long_limit": max(LIMITS),
    "thinkprune.length_reward.name": "l1_exact",  # it rewards what a model of random weights writes, too
    "thinkprune.length_reward.params": {"alpha": 0.02, "target": 12},
    "thinkprune.control.enabled": False,
    "thinkprune.selection.baseline": "round_start",
    "thinkprune.selection.max_relative_drop": 0.99,
    "thinkprune.report_data": None,
    "grpo.max_num_steps": STEPS,
    "grpo.num_prompts_per_step": 4,
    "grpo.num_generations_per_prompt": 4,
    "grpo.max_val_samples": 16,
    "grpo.val_batch_size": 16,
    "grpo.val_period": 4,
    "checkpointing.save_period": 1,
    "policy.megatron_cfg.optimizer.lr": 1e-3,
}
TP = "policy__megatron_cfg__tensor_model_parallel_size"
PP = "policy__megatron_cfg__pipeline_model_parallel_size"
TWO_ROUNDS_STEPS = 2
TWO_ROUNDS = {"grpo__max_num_steps": TWO_ROUNDS_STEPS}
OVER_TWO = (
    "--on-cpu",
    "--nodes",
    "2",
    "--gpus-per-node",
    "1",
    "--cpus-per-node",
    "2",
    "--time",
    "60",
    "--max-failures",
    "9",
)
WATCHED = ("--stall-floor", "25", "--stall-factor", "2", "--start-patience", "1200")
FRUGAL = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
PLANTED = {
    "HF_TOKEN": "hf_" + "PlantedSecretOfATest" * 2,
    "WANDB_API_KEY": "0123456789planted0123456789planted0123",
}
MOST_S = 1200.0  # for what takes seconds on a machine that does nothing else


@dataclass(frozen=True, slots=True)
class Hurt:
    """What was done to an attempt and to which node; as the next began, the last step saved and what still ran."""

    what: str
    node: str
    attempt: Attempt
    saved: int
    left: list[tuple[str, ...]]


@dataclass(slots=True)
class Place:
    """The lab, where data and model are, where NeMo-RL is, and the folder of all runs."""

    lab: SlurmLab
    folder: Path
    root: Path
    paths: dict[str, Any]

    def overrides(self, **settings: Any) -> list[str]:
        """What makes the recipe of a run out of the one that is shipped."""
        values = {
            **SETTINGS,
            **self.paths,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        return [f"{key}={'null' if value is None else value}" for key, value in values.items()]

    def launch(self, name: str, *options: str, **settings: Any) -> LaunchedJob:
        given = ("--nemo-rl-root", str(self.root), *OVER_TWO, *options, *self.overrides(**settings))
        environment = {**PLANTED, **FRUGAL}
        return launch(self.lab, RECIPE, *given, run_dir=self.folder / name, environment=environment)

    def locally(self, verb: str, name: str, **settings: Any) -> subprocess.Popen[bytes]:
        """The same in one process of the local engine, into the folder `name`."""
        command = [
            PROGRAMS / "thinkprune",
            verb,
            RECIPE,
            "--engine",
            "local",
            "--run-dir",
            self.folder / name,
        ]
        with open(self.folder / f"{name}.log", "wb") as log:
            return subprocess.Popen(
                [*map(str, command), *self.overrides(**settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **FRUGAL},
            )


# ---- What is done to attempts -----------------------------------------------------------------------------------


def second_node(at: Place, job: LaunchedJob) -> str:
    """The node of the newest attempt that is not its head."""
    attempt = job.attempts()[-1]
    named = at.lab.run(["scontrol", "show", "hostnames", str(attempt.nodes)]).stdout.split()
    [other] = [node for node in named if node != attempt.head]
    return other


def lose_worker(at: Place, job: LaunchedJob) -> str:
    node = second_node(at, job)
    at.lab.crash(node)
    return node


def lose_head(at: Place, job: LaunchedJob) -> str:
    node = str(job.attempts()[-1].head)
    at.lab.crash(node)
    return node


def stop_a_rank(at: Place, job: LaunchedJob) -> str:
    """In the midst of a call, so that the other rank waits for it in a collective operation."""
    node = second_node(at, job)
    [rank] = [process for process in at.lab.processes(node) if "CpuWorker" in " ".join(process.argv[:1])]
    title = Path(f"/proc/{rank.pid}/cmdline")
    job.wait_for(lambda: b"CpuWorker.generate" in title.read_bytes(), "no call of the rank", every=0.01)
    os.kill(rank.pid, signal.SIGSTOP)
    return node


def kill_the_driver(at: Place, job: LaunchedJob) -> str:
    node = str(job.attempts()[-1].head)
    [driver] = [p for p in at.lab.processes(node) if p.argv[1:4] == ("-m", "nemo_thinkprune", "train")]
    os.kill(driver.pid, signal.SIGKILL)
    return node


def ask_to_save(at: Place, job: LaunchedJob) -> str:
    """What Slurm does ahead of the time limit."""
    at.lab.run(["scancel", "--batch", "--signal=USR1", str(job.job_id)])
    return str(job.attempts()[-1].head)


HARMS: tuple[Callable[[Place, LaunchedJob], str], ...] = (
    lose_worker, stop_a_rank, lose_head, kill_the_driver, ask_to_save,
)  # fmt: skip


def disturb(at: Place, job: LaunchedJob) -> Iterator[Hurt]:
    """Let an attempt train a step, then harm it, and so the next; the last one is left alone."""
    hurt = 0
    for harm in HARMS:
        hurt = training_attempt(job, after=hurt)
        before = programs(at.lab)
        node = harm(at, job)
        job.wait_event("start", attempt=hurt + 1, timeout=MOST_S)
        left = [
            argv for process, argv in programs(at.lab).items() if process in before and not of_the_lab(argv)
        ]
        saved = max(checkpoint.step for checkpoint in all_checkpoints(job.run_dir / "checkpoints"))
        yield Hurt(harm.__name__, node, job.attempts()[hurt - 1], saved, left)
        if not at.lab.processes(node):
            at.lab.boot(node)
    training_attempt(job, after=hurt)
    job.wait_over(timeout=MOST_S)


def training_attempt(job: LaunchedJob, *, after: int) -> int:
    """The next attempt that has trained a step: Ray gives itself 30 s to start, too few where all is busy."""
    before = last_step(job.run_dir)
    job.wait_for(lambda: last_step(job.run_dir) > before, f"no step {before + 1}", timeout=MOST_S)
    number = job.attempts()[-1].number
    assert number > after, job.told()
    return number


def programs(lab: SlurmLab) -> dict[tuple[int, float], tuple[str, ...]]:
    """The processes of n1, n2 and n3: id and time of start, and command line."""
    found: list[NodeProcess] = [p for node in ("n1", "n2", "n3") for p in lab.processes(node)]
    started = {}
    for process in found:
        try:
            started[process.pid, psutil.Process(process.pid).create_time()] = process.argv
        except psutil.NoSuchProcess:
            continue
    return started


def of_the_lab(argv: tuple[str, ...]) -> bool:
    return any(name in " ".join(argv[:2]) for name in ("slurm_node_init", "slurmd"))


@contextmanager
def sampled_command_lines() -> Iterator[set[bytes]]:
    """The command lines of all processes of this machine, those of the nodes among them, by and by."""
    shown: set[bytes] = set()
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.5):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    shown.add(entry.read_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class Story:
    """Both jobs when they are over, what the local engine made of the same, and what was seen meanwhile."""

    disturbed: LaunchedJob
    hurts: list[Hurt]
    peaceful: LaunchedJob
    trained: Path
    pruned: Path
    shown: set[bytes]
    scattered: list[str]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_slurm()
    found = require_nemo_rl()
    if not found.version.startswith("0.7"):
        pytest.skip(f"the CPU worker serves NeMo-RL 0.7, not {found.version}")
    folder = tmp_path_factory.mktemp("nemo_rl")
    recipe = place(load_recipe(RECIPE), folder)
    make_data(folder, seed=0, say=lambda _: None)
    data = recipe.data
    paths = {
        "policy.model_name": recipe.policy.model_name,
        "policy.tokenizer.name": recipe.policy.tokenizer.name,
        "data.train": f"[{{data_path: {data.train[0].data_path}}}]",
        "data.validation": f"[{{data_path: {data.validation[0].data_path}}}]",
    }
    with slurm_lab(folder / "lab", shared=[folder, found.root], nodes=5) as lab:
        yield Place(lab, folder, found.root, paths)


@pytest.fixture(scope="module")
def story(at: Place) -> Iterator[Story]:
    """Run everything; the nodes that boot again live as long as this thread."""
    with sampled_command_lines() as shown:
        job = at.launch("disturbed", *WATCHED, "--sbatch=--exclude=n4,n5", **{TP: 2})
        peaceful = at.launch("peaceful", "--rounds", "--sbatch=--nodelist=n4,n5", **{PP: 2}, **TWO_ROUNDS)
        local = [at.locally("train", "trained"), at.locally("prune", "pruned", **TWO_ROUNDS)]
        try:
            hurts, scattered = [], []
            for hurt in disturb(at, job):
                hurts.append(hurt)
                scattered += planted_in_private_files(at.lab, job)
            peaceful.wait_event("finished", timeout=MOST_S)
            assert [process.wait(timeout=MOST_S) for process in local] == [0, 0]
        finally:
            for process in local:
                process.kill()
                process.wait()
    yield Story(job, hurts, peaceful, at.folder / "trained", at.folder / "pruned", shown, scattered)


def planted_in_private_files(lab: SlurmLab, job: LaunchedJob) -> list[str]:
    """Files of the job's private folders that hold a planted secret, but for the two that are meant to."""
    found = []
    for node in lab.nodes:
        for name in lab.node_files(node) if lab.processes(node) else ():
            path = lab.node_path(node, name)
            if (
                f"thinkprune-{job.job_id}-" in name
                and path.is_file()
                and path.name not in ("hf_token", "netrc")
            ):
                found += [
                    f"{node}:{name}" for value in PLANTED.values() if value.encode() in path.read_bytes()
                ]
    return found


# ---- What must have become of them --------------------------------------------------------------------------------


def test_every_harm_is_told_by_its_name_and_the_job_goes_on(story: Story) -> None:
    job, attempts = story.disturbed, [hurt.attempt for hurt in story.hurts]
    reasons = ["node_lost", "stalled", "batch_node_lost", "driver_killed", "saved"]
    assert [attempt.reason for attempt in attempts] == reasons, job.told()
    assert [attempt.then for attempt in attempts] == ["requeue", "requeue", None, "requeue", "requeue"]
    assert [attempt.code for attempt in attempts[1:]] == [76, None, 128 + signal.SIGKILL, 75]
    assert story.hurts[0].node in attempts[0].text and "USR1" in attempts[4].signals
    assert (job.attempts()[-1].reason, job.attempts()[-1].then) == ("finished", "finished")
    assert job.lab.job(job.job_id)["JobState"] == "COMPLETED"


def test_no_step_is_lost_beyond_the_last_checkpoint_and_none_done_twice(story: Story) -> None:
    job = story.disturbed
    assert steps_of(job.run_dir) == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows(job.run_dir / "ledger.jsonl")] == list(range(1, STEPS + 1))
    assert len(list((job.run_dir / "rollouts").iterdir())) == STEPS
    trained = [
        re.findall(r" step (\d+)/", job.log("driver.log", attempt.number)) for attempt in job.attempts()
    ]
    assert [int(steps[0]) for steps in trained if steps] == [1, *(hurt.saved + 1 for hurt in story.hurts)]


def test_no_process_of_an_attempt_lives_on_in_the_next(story: Story) -> None:
    assert {hurt.what: hurt.left for hurt in story.hurts} == {harm.__name__: [] for harm in HARMS}
    story.disturbed.wait_gone()
    story.peaceful.wait_gone()


def test_tensor_parallel_ranks_on_two_nodes_make_the_local_engines_run(story: Story) -> None:
    assert_same_run(story.disturbed.run_dir, story.trained, until=STEPS)
    learnt = steps(story.trained).values()
    assert all(row["grad_norm"] > 0 for row in learnt) and sum(abs(row["reward_mean"]) for row in learnt) > 0


def test_pipeline_stages_on_two_nodes_prune_as_the_local_engine_does(story: Story) -> None:
    job = story.peaceful
    assert job.ends()[-1] == ("finished", "finished"), job.told()
    for number, limit in enumerate(LIMITS, start=1):
        folder = f"round_{number}_L{limit}"
        assert_same_run(job.run_dir / folder, story.pruned / folder, until=TWO_ROUNDS_STEPS)
    assert responses(job.run_dir / "round_1_L40", 1) != responses(job.run_dir / "round_2_L32", 1)


def test_the_stacks_of_a_stall_hold_every_rank_of_both_nodes(story: Story) -> None:
    job, stall = story.disturbed, story.hurts[1]
    assert stall.attempt.text.startswith("stalled: ")
    folder = job.folder.attempt(stall.attempt.number) / "stacks"
    files = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    assert len(files) == 2 and stall.node in files
    ranks = {
        node: re.findall(r"^==== pid .*: ray::CpuWorker.*\n(.*)", text, re.MULTILINE)
        for node, text in files.items()
    }
    assert all(len(states) == 1 for states in ranks.values()), files
    assert ranks[stall.node] == ["state T: stopped by a signal"]
    if find_py_spy():
        assert all("cpu_worker.py" in text for text in files.values())


def test_a_planted_secret_is_in_no_command_line_and_no_file(story: Story, at: Place) -> None:
    assert any(b"CpuWorker" in line for line in story.shown) and any(
        b"raylet" in line for line in story.shown
    )
    for name, value in PLANTED.items():
        assert not [line for line in story.shown if value.encode() in line], name
        runs = [
            path
            for run in ("disturbed", "peaceful")
            for path in (at.folder / run).rglob("*")
            if path.is_file()
        ]
        assert runs and not [path for path in runs if value.encode() in path.read_bytes()], name
    assert story.scattered == []
