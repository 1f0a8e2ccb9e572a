"""Killed anywhere and started again, a run leaves byte for byte what an uninterrupted one leaves."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.killing import ENTRY
from support.tiny_runs import records, train_job

from nemo_thinkprune.training.supervisor import JobFailed, JobStopped, run_job

LAYOUTS = {
    "tp1": {},
    "tp2": {"cluster__gpus_per_node": 2, "policy__megatron_cfg__tensor_model_parallel_size": 2},
}
PHASES = ["generate", "score", "update", "save", "rename"]


@pytest.fixture(scope="module")
def recipe(tiny_run: Any) -> Any:
    return tiny_run


@pytest.fixture(scope="module", params=LAYOUTS)
def uninterrupted(
    request: pytest.FixtureRequest, recipe: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    run_dir = tmp_path_factory.mktemp(request.param)
    run_job(train_job(recipe, run_dir, **LAYOUTS[request.param]))
    return request.param, records(run_dir)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)


def sentence(run_dir: Path, **values: Any) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "death.json").write_text(json.dumps({"step": 2, "rank": 0, "signal": "SIGKILL", **values}))


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name] == right[name], name


def test_the_run_learns_something(uninterrupted: Any) -> None:
    _, left = uninterrupted
    rows = [json.loads(row) for row in left["metrics"]]
    steps = [row for row in rows if "validation" not in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["mixed_group_share"] > 0 and row["grad_norm"] > 0 for row in steps)
    assert max(row["sampler_gap"] for row in steps) < 1e-5


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_a_phase_and_resumed(phase: str, uninterrupted: Any, recipe: Any, tmp_path: Path) -> None:
    layout, expected = uninterrupted
    job = train_job(recipe, tmp_path, **LAYOUTS[layout])
    last_rank = job.world_size - 1 if phase not in ("rename",) else 0  # rank 0 alone renames
    sentence(tmp_path, phase=phase, rank=last_rank)
    with pytest.raises(JobFailed, match=r"SIGKILL|killed"):
        run_job(job, entry=ENTRY)
    assert not (tmp_path / "death.json").exists()
    run_job(job, entry=ENTRY)
    same(records(tmp_path), expected)


def test_a_torn_checkpoint_is_refused_by_name(uninterrupted: Any, recipe: Any, tmp_path: Path) -> None:
    layout, expected = uninterrupted
    job = train_job(recipe, tmp_path, **LAYOUTS[layout])
    sentence(tmp_path, phase="generate", step=3)
    with pytest.raises(JobFailed):
        run_job(job, entry=ENTRY)
    shard = next(
        (tmp_path / "checkpoints" / "step_2" / "policy" / "weights" / "iter_0000000").glob("__0_*.distcp")
    )
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    notes: list[str] = []
    run_job(job, on_event=lambda event: notes.append(str(event.extra.get("note", ""))))
    assert any("step_2" in note and shard.name in note for note in notes), notes
    same(records(tmp_path), expected)


def test_sigterm_saves_stops_and_resumes(recipe: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    values = {"checkpointing__save_period": 50}
    run_job(train_job(recipe, whole, **values))
    job = train_job(recipe, tmp_path / "parts", **values)
    sentence(job.run_dir, phase="update", signal="SIGTERM")
    with pytest.raises(JobStopped):
        run_job(job, entry=ENTRY)
    assert (job.run_dir / "checkpoints" / "step_2").is_dir()
    run_job(job, entry=ENTRY)
    left, right = records(job.run_dir), records(whole)
    assert left.pop("checkpoints") == ["step_2", "step_3"]
    right.pop("checkpoints")
    same(left, right)


def test_a_stopped_rank_ends_the_run_with_all_stacks(recipe: Any, tmp_path: Path) -> None:
    job = train_job(recipe, tmp_path, **LAYOUTS["tp2"], thinkprune__runtime__stall_timeout_s=8.0)
    sentence(tmp_path, phase="generate", rank=1, signal="SIGSTOP")
    start = time.monotonic()
    with pytest.raises(JobFailed, match="rank 1"):
        run_job(job, entry=ENTRY)
    assert time.monotonic() - start < 60
    stacks = {path.name: path.read_text() for path in tmp_path.glob("logs/*/rank_*.stacks")}
    assert set(stacks) == {"rank_0.stacks", "rank_1.stacks"}
    assert "beat" in stacks["rank_1.stacks"]
    assert "collect" in stacks["rank_0.stacks"]


def test_no_process_outlives_a_failed_run(recipe: Any, tmp_path: Path) -> None:
    job = train_job(recipe, tmp_path, **LAYOUTS["tp2"])
    sentence(tmp_path, phase="update", rank=1)
    with pytest.raises(JobFailed):
        run_job(job, entry=ENTRY)
    left = [p.cmdline() for p in psutil.process_iter() if str(tmp_path) in " ".join(cmdline(p))]
    assert left == []


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_the_disk_fills_up(recipe: Any, tmp_path: Path) -> None:
    """Files over 300 kB cannot be written: the checkpoint fails with advice, the records before it stay whole."""
    import resource

    from nemo_thinkprune.recipe.errors import UserError

    run_job(train_job(recipe, tmp_path, grpo__max_num_steps=1))
    before = records(tmp_path)
    job = train_job(recipe, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises((UserError, JobFailed), match=r"room|large|space"):
            run_job(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert records(tmp_path)["checkpoints"] == before["checkpoints"]
    run_job(job)
    assert records(tmp_path)["checkpoints"] == ["step_1", "step_2", "step_3"]
