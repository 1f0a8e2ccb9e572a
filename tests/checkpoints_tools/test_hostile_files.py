"""Small files that try to hang, to fill memory, or to end in a traceback: each is refused in one message."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.models import small_config

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import config_from_dict, config_to_dict, read_hf_config
from checkpoints_tools.hf_folder import INDEX_FILE, stored_tensors
from checkpoints_tools.safetensors_file import read_header
from checkpoints_tools.small_files import parse_yaml, read_yaml
from checkpoints_tools.weight_map import weight_map

CONFIG = config_to_dict(small_config("Qwen3ForCausalLM"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", INDEX_FILE])
def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"not a regular file|has neither"):
        read_hf_config(tmp_path) if name == "config.json" else stored_tensors(tmp_path)


def test_a_pipe_in_a_shards_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / INDEX_FILE).write_text('{"weight_map": {"x": "a.safetensors"}}')
    with pytest.raises(CheckpointError, match="not a regular file"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("dtype", [["F32"], {"a": 1}, None, 3, "F33"])
def test_a_dtype_that_is_none_is_refused(tmp_path: Path, dtype: Any) -> None:
    header = json.dumps({"x": {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="malformed header entry of x"):
        read_header(file)


def test_an_index_of_any_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_bytes(b"")
    os.truncate(tmp_path / INDEX_FILE, 17 << 20)
    with pytest.raises(CheckpointError, match="larger than"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", 10**400),
        ("rope_theta", 10**400),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10_001),
        ("hidden_size", 10**9),
        ("intermediate_size", 10**9),
        ("head_dim", 1 << 21),
        ("vocab_size", 10**9),
        ("max_position_embeddings", 1 << 50),
    ],
)
def test_sizes_beyond_any_model_are_refused(key: str, value: int) -> None:
    with pytest.raises(CheckpointError, match=key):
        config_from_dict(CONFIG | {key: value})


@pytest.mark.parametrize(("heads", "layers"), [(10**8, 1), (1 << 16, 2), (1 << 10, 10_000)])
def test_heads_beyond_any_model_are_refused(heads: int, layers: int) -> None:
    values = {"num_attention_heads": heads, "num_key_value_heads": heads, "num_hidden_layers": layers}
    with pytest.raises(CheckpointError, match="larger than any model's"):
        config_from_dict(CONFIG | values)


def test_the_largest_models_that_are_known_are_taken() -> None:
    values = {"num_attention_heads": 128, "num_key_value_heads": 128, "num_hidden_layers": 126}
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "vocab_size": 256_000}
    assert len(weight_map(config_from_dict(CONFIG | values | sizes)).hf) > 1000


@pytest.mark.parametrize(
    "values",
    [
        {"architectures": ["\x1b[2J" * 9999]},
        {"num_experts": "\x1b[2J" * 9999},
        {"\x1b]0;a" * 9999: 1},
        {"layer_types": ["\x1b[2J"] * 9999},
        {"torch_dtype": "\x1b[2J" * 9999},
        {"rope_scaling": {"\x1b[2J" * 99: 1}},
    ],
)
def test_a_config_cannot_steer_a_terminal(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | values))
    with pytest.raises(CheckpointError) as raised:
        read_hf_config(tmp_path)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize("text", ['a: !!bool "x"', 'a: !!int ""', 'a: !!float ""', 'a: !!timestamp "x"'])
def test_malformed_yaml_scalars_are_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read as YAML"):
        parse_yaml(text, Path("a.yaml"))


@pytest.mark.parametrize("tag", ["", "!!int ", "!!float "])
def test_yaml_has_no_numbers_of_base_60(tag: str) -> None:
    """A long one would take a minute."""
    number = "1:" * 100_000 + "1"
    assert parse_yaml(f"a: {tag}{number}", Path("a.yaml")) == {"a": number}
    assert parse_yaml("a: 1:30\nb: 90\nc: 1.5\nd: -0x1f", Path("a.yaml")) == {
        "a": "1:30", "b": 90, "c": 1.5, "d": -31
    }  # fmt: skip


def test_yaml_of_any_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n" * 100_000)
    with pytest.raises(CheckpointError, match=re.escape("larger than")):
        read_yaml(tmp_path / "config.yaml")
