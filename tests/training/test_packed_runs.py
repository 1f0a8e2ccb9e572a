"""Whole runs with packed micro-batches on two data-parallel ranks with the distributed optimizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import records, train_job

from nemo_thinkprune.training.supervisor import run_job

PACKED = {
    "grpo__max_num_steps": 2,
    "grpo__val_at_start": False,
    "grpo__val_at_end": False,
    "grpo__val_period": 0,
    "checkpointing__enabled": False,
    "policy__sequence_packing__enabled": True,
    "policy__sequence_packing__train_mb_tokens": 256,  # two or three responses in each micro-batch
}
DP2 = {"cluster__gpus_per_node": 2, "policy__megatron_cfg__optimizer__use_distributed_optimizer": True}


def test_two_packed_ranks_equal_one(tiny_run: Any, tmp_path: Path) -> None:
    one, two = (
        run(tiny_run, tmp_path / name, **PACKED, **layout) for name, layout in (("one", {}), ("two", DP2))
    )
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2]
    first = "rollouts/step_1.jsonl"
    assert (tmp_path / "one" / first).read_bytes() == (tmp_path / "two" / first).read_bytes()
    for ours, expected in zip(two, one, strict=True):
        for key in ("loss", "kl", "grad_norm", "entropy"):
            assert ours[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key
    assert all(row["grad_norm"] > 0 for row in one)


def test_packed_ranks_in_bfloat16_repeat_a_step_to_the_bit(tiny_run: Any, tmp_path: Path) -> None:
    """Resumed from step 1, the ranks sample and train as they did: fp32 weights and moments came back, on each rank."""
    values = {**PACKED, **DP2, "checkpointing__enabled": True, "policy__precision": "bfloat16"}
    rows = run(tiny_run, tmp_path, **values)
    assert all(row["grad_norm"] > 0 and 0 < row["sampler_gap"] < 0.02 for row in rows)  # rounding, no more
    expected = records(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step_2")
    run(tiny_run, tmp_path, **values)
    again = records(tmp_path)
    assert again["checkpoints"] == ["step_1", "step_2"]
    for name, value in expected.items():
        assert again[name] == value, name


def run(recipe: Any, run_dir: Path, **values: Any) -> list[dict[str, Any]]:
    run_job(train_job(recipe, run_dir, **values))
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
