"""Killed anywhere and started again, a run leaves byte for byte what an uninterrupted one leaves."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.killing import ENTRY, SENTENCE, sentence
from support.tiny_runs import WEIGHTS, records, train_job

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.manifest import verify
from nemo_thinkprune.training.supervisor import JobFailed, JobStopped, run_job

LAYOUTS = {
    "tp1": {},
    "tp2": {"cluster__gpus_per_node": 2, "policy__megatron_cfg__tensor_model_parallel_size": 2},
}
PHASES = ["generate", "score", "update", "save", "rename"]
RECORDS = ("metrics.jsonl", "ledger.jsonl")


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
    sentence(tmp_path, phase, rank=last_rank)
    dies(job)
    run_job(job, entry=ENTRY)
    same(records(tmp_path), expected)


def dies(job: Any) -> None:
    """Run the job until its sentence is carried out; nothing may be left running."""
    with pytest.raises(JobFailed, match="was killed by SIGKILL"):
        run_job(job, entry=ENTRY)
    assert not (job.run_dir / SENTENCE).exists()
    assert processes_of(job.run_dir) == []


def names(job: Any) -> set[str]:
    return {path.name for path in (job.run_dir / "checkpoints").iterdir()}


@pytest.mark.parametrize("uninterrupted", ["tp1"], indirect=True)
def test_killed_between_the_records_of_a_step(uninterrupted: Any, recipe: Any, tmp_path: Path) -> None:
    """Responses and ledger tell of step 2, the metrics do not: the step is done again, and counted once."""
    _, expected = uninterrupted
    job = train_job(recipe, tmp_path)
    sentence(tmp_path, "metrics")
    dies(job)
    steps = [[json.loads(line)["step"] for line in (tmp_path / name).open()] for name in RECORDS]
    assert steps == [[0, 1], [1, 2]]
    assert (tmp_path / "rollouts" / "step_2.jsonl").exists() and names(job) == {"step_1"}
    run_job(job)
    same(records(tmp_path), expected)


def test_killed_inside_a_weight_file(uninterrupted: Any, recipe: Any, tmp_path: Path) -> None:
    layout, expected = uninterrupted
    job = train_job(recipe, tmp_path, **LAYOUTS[layout])
    rank = job.world_size - 1
    sentence(tmp_path, "shard", rank=rank)
    dies(job)
    assert names(job) == {"step_1", "tmp_step_2"}
    whole, torn = (
        [step / WEIGHTS / f"__{rank}_{number}.distcp" for number in (0, 1)]
        for step in (tmp_path / "checkpoints" / "step_1", tmp_path / "checkpoints" / "tmp_step_2")
    )
    assert torn[0].stat().st_size == whole[0].stat().st_size
    assert 0 < torn[1].stat().st_size < whole[1].stat().st_size
    run_job(job)
    same(records(tmp_path), expected)


@pytest.mark.parametrize("uninterrupted", ["tp1"], indirect=True)
def test_killed_before_and_between_the_renames(uninterrupted: Any, recipe: Any, tmp_path: Path) -> None:
    """Step 2 dies sealed; later it is damaged, trained again, and dies while it replaces the damaged one."""
    _, expected = uninterrupted
    job = train_job(recipe, tmp_path)
    sentence(tmp_path, "sealed")
    dies(job)
    assert names(job) == {"step_1", "tmp_step_2"}
    assert (
        verify(tmp_path / "checkpoints" / "tmp_step_2") == []
    )  # whole, but without its name it does not count
    sentence(tmp_path, "generate", step=3)
    dies(job)
    shard = damage(tmp_path / "checkpoints" / "step_2")
    sentence(tmp_path, "replaced")
    dies(job)
    assert names(job) == {"step_1", "old_step_2", "tmp_step_2"}
    notes: list[str] = []
    run_job(job, on_event=lambda event: notes.append(str(event.extra.get("note", ""))))
    assert any("step_2" in note and shard in note for note in notes), notes  # brought back, and refused again
    assert names(job) == {"step_1", "step_2", "step_3"}
    same(records(tmp_path), expected)


def damage(step: Path) -> str:
    """Change one byte in the middle of a weight file; the file's name."""
    shard = next((step / WEIGHTS).glob("__0_*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return shard.name


def test_a_torn_checkpoint_is_refused_by_name(uninterrupted: Any, recipe: Any, tmp_path: Path) -> None:
    layout, expected = uninterrupted
    job = train_job(recipe, tmp_path, **LAYOUTS[layout])
    sentence(tmp_path, "generate", step=3)
    dies(job)
    shard = damage(tmp_path / "checkpoints" / "step_2")
    notes: list[str] = []
    run_job(job, on_event=lambda event: notes.append(str(event.extra.get("note", ""))))
    assert any("step_2" in note and shard in note for note in notes), notes
    same(records(tmp_path), expected)


def test_sigterm_saves_stops_and_resumes(recipe: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    values = {"checkpointing__save_period": 50}
    run_job(train_job(recipe, whole, **values))
    job = train_job(recipe, tmp_path / "parts", **values)
    sentence(job.run_dir, "update", kill="SIGTERM")
    with pytest.raises(JobStopped):
        run_job(job, entry=ENTRY)
    assert (job.run_dir / "checkpoints" / "step_2").is_dir()
    run_job(job, entry=ENTRY)
    left, right = records(job.run_dir), records(whole)
    assert left.pop("checkpoints") == ["step_2", "step_3"]
    right.pop("checkpoints")
    same(left, right)


def test_a_stopped_rank_ends_the_run_with_all_stacks(recipe: Any, tmp_path: Path) -> None:
    job = train_job(recipe, tmp_path, **LAYOUTS["tp2"], thinkprune__runtime__stall_timeout_s=15.0)
    sentence(tmp_path, "generate", rank=1, kill="SIGSTOP")
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
    sentence(tmp_path, "update", rank=1)
    dies(job)


def processes_of(run_dir: Path) -> list[list[str]]:
    return [line for p in psutil.process_iter() if str(run_dir) in " ".join(line := cmdline(p))]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("uninterrupted", ["tp1"], indirect=True)
def test_the_disk_fills_up(uninterrupted: Any, recipe: Any, tmp_path: Path) -> None:
    """Files over 300 kB cannot be written: weights cannot be saved, the records stay whole, and it goes on later."""
    _, expected = uninterrupted
    job = train_job(recipe, tmp_path)
    sentence(tmp_path, "generate")
    dies(job)
    before = records(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"room") as raised:
            run_job(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / "checkpoints") in str(raised.value) and "Traceback" not in str(raised.value)
    after = records(tmp_path)
    assert after["checkpoints"] == before["checkpoints"] == ["step_1"]
    assert after["weights"] == before["weights"]
    assert verify(tmp_path / "checkpoints" / "step_1") == []
    assert after["ledger"].startswith(before["ledger"])
    assert after["metrics"][: len(before["metrics"])] == before["metrics"]
    assert after["rollouts"]["step_1.jsonl"] == before["rollouts"]["step_1.jsonl"]
    run_job(job)
    same(records(tmp_path), expected)
