"""Converting takes no more memory for a large model, and the benchmark that says so runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.models import small_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LIMIT_MB = 150
CONVERTER = (sys.executable, "-c", "from checkpoints_tools.cli import main; main()")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's modules."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import process_tree
    import shapes

    return process_tree, shapes


def test_the_whole_tree_is_measured(benchmarks: Any, tmp_path: Path) -> None:
    process_tree, _ = benchmarks
    hold = "import time; x = bytearray(60_000_000); time.sleep(0.5)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}]); {hold}"
    two = process_tree.run([sys.executable, "-c", start], output=tmp_path / "log")
    assert two.code == 0, two.text
    assert 60 < two.tree_mb < 110  # one after the other
    assert two.bound_mb > 120 and two.maxrss_mb > 60


def test_memory_does_not_grow_with_the_model(benchmarks: Any, tmp_path: Path) -> None:
    process_tree, shapes = benchmarks
    config = small_config(
        "Qwen2ForCausalLM",
        hidden_size=1024,
        num_layers=6,
        num_heads=8,
        num_kv_heads=4,
        head_dim=128,
        ffn=4096,
        vocab_size=20_000,
        dtype="bfloat16",
    )
    assert shapes.model_bytes(config) > 1.5 * LIMIT_MB * 10**6
    shapes.write_sparse(config, tmp_path / "hf")
    commands = [
        ("import", "--chunk-tp", "2", tmp_path / "hf", tmp_path / "a"),
        ("export", "--dtype", "fp32", tmp_path / "a", tmp_path / "b"),
        ("reshard", "--chunk-tp", "4", tmp_path / "a", tmp_path / "c"),
        ("verify", tmp_path / "hf", tmp_path / "c"),
    ]
    for command in commands:
        outcome = process_tree.run([*CONVERTER, *map(str, command)], output=tmp_path / "log")
        assert outcome.code == 0, outcome.text
        assert outcome.tree_mb < LIMIT_MB, command[0]


def test_the_benchmark_runs_and_cleans_up(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "convert.py", "--shape", "tiny", "--rounds", "2"]
    command += ["--peer-rounds", "0", "--folder", tmp_path / "work", "--json", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert [stage["stage"] for stage in report["stages"]] == ["import", "export", "export of TP=4"]
    for stage in report["stages"]:
        cp, ours = stage["arms"][:2]
        assert len(cp["runs"]) == len(ours["runs"]) == 2 and cp["ratio"] == 1.0
        assert ours["ratio"] > 0 and all(0 < run["tree_mb"] < LIMIT_MB for run in ours["runs"])
        assert f"{stage['stage']}:" in done.stdout
    assert list((tmp_path / "work").iterdir()) == []
