"""Mistakes that are found before any process starts: exit code 2, a message, no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nemo_thinkprune import cli
from nemo_thinkprune.data.tiny_model import model_config
from nemo_thinkprune.training import crew

TP = "policy.megatron_cfg.tensor_model_parallel_size"
PP = "policy.megatron_cfg.pipeline_model_parallel_size"
RANKS = "cluster.gpus_per_node"
DIVISIBLE = "policy.make_sequence_length_divisible_by"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data, a file in the way, and no way to start a process."""

    def started(*args: object, **keys: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(crew.subprocess, "Popen", started)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(model_config()))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text(json.dumps(model_config() | {"model_type": "mamba"}))
    (tmp_path / "file").touch()
    (tmp_path / "p.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    recipe = {
        "policy": {"model_name": "tiny"},
        "data": {
            "max_input_seq_length": 64,
            "train": {"data_path": "p.jsonl"},
            "validation": {"data_path": "p.jsonl"},
        },
        "thinkprune": {"limits": [100]},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    return tmp_path


EVAL = ("eval", "tiny", "--data", "p.jsonl", "--limit", "9")
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "eval: ranks": ((*EVAL, f"{TP}=2"), "cannot be divided"),
    "eval: heads": ((*EVAL, f"{TP}=4", f"{RANKS}=4"), "num_key_value_heads = 2"),
    "eval: layers": ((*EVAL, f"{PP}=3", f"{RANKS}=3"), "pipeline stages"),
    "eval: positions": ((*EVAL[:-1], "99999"), "max_position_embeddings"),
    "eval: no JSON": (("eval", "broken", *EVAL[2:]), "cannot be read as JSON"),
    "eval: architecture": (("eval", "strange", *EVAL[2:]), "mamba"),
    "eval: below a file": ((*EVAL, "--out", "file/x/y"), "cannot make the folder"),
    "eval: beside a file": ((*EVAL, "--out", "file.json"), "cannot make the folder file"),
    "eval: no model": (("eval", ".", *EVAL[2:]), "has no config.json"),
    "train: ranks": (("train", "r.yaml", f"{TP}=2"), "cannot be divided"),
    "train: heads": (
        ("train", "r.yaml", f"{TP}=4", f"{RANKS}=4", f"{DIVISIBLE}=4"),
        "num_key_value_heads = 2",
    ),
    "train: layers": (("train", "r.yaml", f"{PP}=3", f"{RANKS}=3"), "pipeline stages"),
    "train: no JSON": (("train", "r.yaml", "policy.model_name=broken"), "cannot be read as JSON"),
    "train: architecture": (("train", "r.yaml", "policy.model_name=strange"), "mamba"),
    "train: below a file": (("train", "r.yaml", "--run-dir", "file/run"), "cannot make the folder"),
    "train: a file": (("train", "r.yaml", "--run-dir", "file"), "cannot make the folder"),
    "prune: below a file": (("prune", "r.yaml", "--run-dir", "file/run"), "cannot make the folder"),
    "prune: architecture": (("prune", "r.yaml", "policy.model_name=strange"), "mamba"),
    "quickstart: below a file": (("quickstart", "--run-dir", "file/run"), "cannot make the folder"),
    "warmup: below a file": (
        ("warmup", "r.yaml", "thinkprune.warmup.data_path=p.jsonl", "--run-dir", "file/run"),
        "cannot make the folder",
    ),
    "warmup: architecture": (
        ("warmup", "r.yaml", "thinkprune.warmup.data_path=p.jsonl", "policy.model_name=strange"),
        "mamba",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_exit_code_2_and_a_message(name: str, folder: Path) -> None:
    arguments, says = MISTAKES[name]
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == 2, result.exception or result.output
    assert result.stderr.startswith("error: ") and says in result.stderr
    assert "Traceback" not in result.output


def torch_dist(step: Path, config: Callable[[], dict[str, object]] | None) -> Path:
    (step / "policy" / "weights" / "iter_0000000").mkdir(parents=True)
    (step / "policy" / "tokenizer").mkdir()
    if config is not None:
        (step / "policy" / "tokenizer" / "config.json").write_text(json.dumps(config()))
    return step


def test_check_takes_a_checkpoint_as_model_and_says_what_is_missing_in_another(folder: Path) -> None:
    ours = torch_dist(folder / "ours" / "step_3", model_config)
    foreign = torch_dist(folder / "theirs" / "step_3", None)
    result = CliRunner().invoke(cli.app, ["check", "r.yaml", f"policy.model_name={ours}"])
    assert result.exit_code == 0, result.stderr
    result = CliRunner().invoke(cli.app, ["check", "r.yaml", f"policy.model_name={foreign}"])
    assert result.exit_code == 2
    assert f"policy.pretrained_checkpoint.path={foreign}/policy/weights/iter_0000000" in result.stderr
