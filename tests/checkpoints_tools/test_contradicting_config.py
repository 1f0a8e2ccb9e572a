"""A config.json whose shapes fit and whose heads do not: the same bytes would make another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.models import MODELS

from checkpoints_tools.convert import export_model, import_model
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.models import open_checkpoint
from checkpoints_tools.proof.inspection import inspect
from checkpoints_tools.random_init import random_hf_init

# Of the small model with 4 heads of 8 in 2 groups: every stored shape is the same.
OTHER_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contradicting") / "hf"
    random_hf_init(MODELS["qwen2"], folder, seed=3, randomize_all=True)
    return folder


@pytest.fixture(scope="module")
def checkpoint(source: Path) -> Path:
    import_model(source, source.parent / "mg")
    return source.parent / "mg"


def base_with(source: Path, folder: Path, **values: object) -> Path:
    folder.mkdir()
    content = json.loads((source / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def without_run_config(checkpoint: Path, folder: Path, text: str | None = None) -> Path:
    shutil.copytree(checkpoint, folder)
    run_config = folder / "iter_0000000/run_config.yaml"
    run_config.unlink() if text is None else run_config.write_text(text)
    return folder


@pytest.mark.parametrize(
    "text", ["as written", None, "model: [", "model: {num_layers: 2}", "model: {seq: 1}"]
)
def test_other_heads_are_refused(source: Path, checkpoint: Path, tmp_path: Path, text: str | None) -> None:
    folder = checkpoint if text == "as written" else without_run_config(checkpoint, tmp_path / "mg", text)
    base = base_with(source, tmp_path / "base", **OTHER_HEADS)
    with pytest.raises(CheckpointError, match=r"num_(attention_)?heads is 4 .* 2.*--base HF_DIR"):
        export_model(folder, tmp_path / "out", base=base)
    assert not list(tmp_path.glob("out*"))
    assert any("heads is 4" in problem for problem in inspect(folder, base=base).problems)


@pytest.mark.parametrize("values", [{"rms_norm_eps": 1e-5}, {"rope_parameters": None, "rope_theta": 5e5}])
def test_what_is_computed_otherwise_is_refused(
    source: Path, checkpoint: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    base = base_with(source, tmp_path / "base", **values)
    for folder in (checkpoint, without_run_config(checkpoint, tmp_path / "mg")):
        with pytest.raises(CheckpointError, match="another model"):
            open_checkpoint(folder, base=base)


@pytest.mark.parametrize(
    "model",
    [
        "num_attention_heads: 4, num_query_groups: null, kv_channels: null, vocab_size: 384",
        "num_attention_heads: 4, rotary_base: 10000, layernorm_epsilon: 1e-06, rope_scaling: true",
        "num_attention_heads: 4, layernorm_epsilon: 1.0e-06, hidden_size: {_target_: a.b}",
        "num_attention_heads: x",
    ],
)
def test_what_another_program_writes_of_the_same_model_is_taken(
    checkpoint: Path, tmp_path: Path, model: str
) -> None:
    open_checkpoint(without_run_config(checkpoint, tmp_path / "mg", f"model: {{{model}}}"))


def test_what_changes_no_tensor_may_differ(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    values = {"dtype": "float32", "torch_dtype": "float32", "initializer_range": 0.5, "vocab_size": 299}
    base = base_with(source, tmp_path / "base", **values, max_position_embeddings=64)
    for folder in (checkpoint, without_run_config(checkpoint, tmp_path / "mg")):
        assert open_checkpoint(folder, base=base).model.config.vocab_size == 299


def test_the_runs_config_goes_before_the_checkpoints_own(
    source: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mg"
    shutil.copytree(checkpoint, folder)
    base_with(source, tmp_path / "other", **OTHER_HEADS)
    shutil.copy(tmp_path / "other/config.json", folder / "iter_0000000/tokenizer/config.json")
    with pytest.raises(CheckpointError, match="num_attention_heads is 4"):
        open_checkpoint(folder)
    open_checkpoint(folder, base=source)
