"""NeMo-RL's real setup and trainer on CPU workers, against the local engine: response by response."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.nemo_rl import require_nemo_rl
from support.same_runs import assert_same_run, responses, rows, steps
from support.tiny_runs import WEIGHTS, make_root, train_job

from nemo_thinkprune.cluster.find import NemoRL
from nemo_thinkprune.rounds.nemo_rl import DRIVER, driver_environment
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.supervisor import Event, JobFailed, JobStopped, run_job

TP = "policy.megatron_cfg.tensor_model_parallel_size"
PP = "policy.megatron_cfg.pipeline_model_parallel_size"


@pytest.fixture(scope="module")
def nemo_rl() -> NemoRL:
    found = require_nemo_rl()
    if not found.version.startswith("0.7"):
        pytest.skip(f"the CPU worker serves NeMo-RL 0.7, not {found.version}")
    return found


@pytest.fixture(scope="module")
def recipe(nemo_rl: NemoRL, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from nemo_thinkprune.recipe.load import with_values

    made = make_root(tmp_path_factory.mktemp("root"))
    return with_values(made, {"thinkprune.long_limit": 60, "grpo.val_batch_size": 32})


@pytest.fixture(scope="module")
def drive(nemo_rl: NemoRL) -> Callable[..., Path]:
    """Run a job on NeMo-RL."""

    def run(job: Job, on_event: Callable[[Event], None] | None = None) -> Path:
        job = replace(job, engine="nemo-rl", on_cpu=True)
        environment = partial(driver_environment, found=nemo_rl, on_cpu=True)
        run_job(job, entry=DRIVER, processes=1, environment=environment, on_event=on_event)
        return job.run_dir

    return run


@pytest.fixture(scope="module")
def local(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps of the local engine on one rank."""
    job = train_job(recipe, tmp_path_factory.mktemp("local"), grpo__max_num_steps=5)
    run_job(job)
    return job.run_dir


@pytest.fixture(scope="module")
def nemo_tp2(recipe: Any, drive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of NeMo-RL on two tensor-parallel ranks."""
    return drive(train_job(recipe, tmp_path_factory.mktemp("tp2"), **{TP: 2, "cluster.gpus_per_node": 2}))


def test_nemo_rl_over_tensor_parallel_ranks_makes_the_local_engines_run(nemo_tp2: Path, local: Path) -> None:
    assert_same_run(nemo_tp2, local, until=3)
    validated = [row for row in rows(nemo_tp2 / "metrics.jsonl") if "validation" in row]
    theirs = [row for row in rows(local / "metrics.jsonl") if "validation" in row]
    assert [row["step"] for row in validated] == [0, 2, 3]
    assert validated[:2] == theirs[:2]
    assert sum(step["accuracy"] for step in steps(local).values()) > 0  # something was learnt from


def test_nemo_rl_over_pipeline_stages_makes_the_local_engines_run(
    recipe: Any, drive: Callable[..., Path], local: Path, tmp_path: Path
) -> None:
    run = drive(train_job(recipe, tmp_path, grpo__max_num_steps=2, **{PP: 2, "cluster.gpus_per_node": 2}))
    assert_same_run(run, local, until=2)


def test_the_local_engine_continues_the_run(recipe: Any, nemo_tp2: Path, local: Path) -> None:
    run_job(train_job(recipe, nemo_tp2, grpo__max_num_steps=5, **{TP: 2, "cluster.gpus_per_node": 2}))
    assert_same_run(nemo_tp2, local, until=5, first=4)
    assert [row["step"] for row in rows(nemo_tp2 / "ledger.jsonl")] == [1, 2, 3, 4, 5]


def test_a_step_exports_to_what_torch_reads(nemo_tp2: Path, tmp_path: Path) -> None:
    from support.checkpoints import assert_same, dcp_tensors, hf_tensors, reference_hf

    from checkpoints_tools.convert import export_model
    from checkpoints_tools.hf_config import read_hf_config

    step = nemo_tp2 / "checkpoints" / "step_3"
    export_model(step, tmp_path / "hf")
    assert_same(hf_tensors(tmp_path / "hf"), reference_hf(step / WEIGHTS, read_hf_config(tmp_path / "hf")))
    assert any(key.startswith("optimizer.") for key in dcp_tensors(step / WEIGHTS))
    assert (tmp_path / "hf" / "tokenizer.json").is_file()


def test_a_local_checkpoint_starts_a_run(
    recipe: Any, drive: Callable[..., Path], local: Path, tmp_path: Path
) -> None:
    start = local / "checkpoints" / "step_5" / WEIGHTS
    job = train_job(recipe, tmp_path / "nemo", grpo__max_num_steps=1, grpo__val_at_start=False)
    run = drive(replace(job, init_weights=start))
    run_job(replace(job, run_dir=tmp_path / "local", init_weights=start))
    assert_same_run(run, tmp_path / "local", until=1)
    assert responses(run, 1) != responses(local, 1)


def test_a_run_that_is_killed_and_stopped_ends_like_any_other(
    recipe: Any, drive: Callable[..., Path], local: Path, tmp_path: Path
) -> None:
    job = train_job(recipe, tmp_path, grpo__max_num_steps=4)
    sessions: list[int] = []

    def kill_in_step_2(event: Event) -> None:
        if event.phase == "step" and event.step == 1:
            sessions.append(driver().pid)
            driver().kill()

    with pytest.raises(JobFailed, match="SIGKILL"):
        drive(job, kill_in_step_2)

    def ask_in_step_3(event: Event) -> None:
        if event.phase == "step" and event.step == 2:
            sessions.append(driver().pid)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(JobStopped) as stopped:
        drive(job, ask_in_step_3)
    assert stopped.value.step in (2, 3)
    assert (tmp_path / "checkpoints" / f"step_{stopped.value.step}").is_dir()
    drive(job)
    assert_same_run(tmp_path, local, until=4)
    assert sorted(steps(tmp_path)) == [1, 2, 3, 4]
    assert_gone(sessions)


def driver() -> psutil.Process:
    """The driver of this test's run."""
    found = [child for child in psutil.Process().children(recursive=True) if DRIVER in child.cmdline()]
    assert len(found) == 1, found
    return found[0]


def assert_gone(sessions: list[int], *, within_s: float = 30.0) -> None:
    """No process is left in the sessions that drivers led: Ray's processes and actors stay in them."""
    deadline = time.monotonic() + within_s
    while left := [pid for pid in psutil.pids() if session_of(pid) in sessions]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
