"""An architecture is its description and nothing else: a made-up one goes all the way through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.models import small_config

from checkpoints_tools import convert, weight_map
from checkpoints_tools.bridge_files import RUN_CONFIG_FILE
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import read_hf_config
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.models import open_hf, open_model
from checkpoints_tools.proof.verify import verify
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.weight_map import ARCHITECTURES
from checkpoints_tools.weight_map.pieces import Architecture, Piece, whole

NAME = "MadeUpForCausalLM"


def _layer(config: ModelConfig) -> tuple[Piece, ...]:
    """Qwen2's layer, and a norm after attention that no real one has."""
    shape = (config.num_heads * config.head_dim,)
    extra = whole("self_attn.out_norm.weight", "self_attention.out_layernorm.weight", shape)
    return *ARCHITECTURES["Qwen2ForCausalLM"].layer(config), extra


MADE_UP = Architecture(
    name=NAME,
    model_type="made_up",
    qkv_bias=True,
    qk_norm=False,
    layer=_layer,
    default_head_dim=16,
    default_rope_theta=5e5,
    default_rms_norm_eps=1e-5,
    default_tied=True,
    bridge={"autocast_dtype": "torch.float32", "layernorm_zero_centered_gamma": True},
)
DEFAULTED = ("head_dim", "rope_theta", "rope_parameters", "rms_norm_eps", "tie_word_embeddings")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the made-up architecture whose config.json leaves all to the defaults."""
    monkeypatch.setitem(weight_map.ARCHITECTURES, NAME, MADE_UP)
    config = small_config(
        NAME, head_dim=16, rope_theta=5e5, rms_norm_eps=1e-5, tied=True, vocab_size=200, dtype="bfloat16"
    )
    random_hf_init(config, tmp_path / "hf", seed=2, randomize_all=True)
    raw = json.loads((tmp_path / "hf/config.json").read_text())
    assert raw["model_type"] == "made_up"
    short = {key: value for key, value in raw.items() if key not in DEFAULTED}
    (tmp_path / "hf/config.json").write_text(json.dumps(short))
    assert read_hf_config(tmp_path / "hf") == config
    return tmp_path / "hf"


def test_a_new_description_converts_there_and_back(model: Path, tmp_path: Path) -> None:
    convert.import_model(model, tmp_path / "mg", chunk_tp=2, dtype="keep", threads=2)
    convert.export_model(
        tmp_path / "mg", tmp_path / "back", base=None, dtype="keep", max_shard_bytes=10**9, threads=2
    )
    assert verify(open_hf(model), open_model(tmp_path / "mg"), threads=2).same
    assert verify(open_hf(model), open_hf(tmp_path / "back"), threads=2).same
    assert any("out_norm" in name for name in open_hf(tmp_path / "back").tensors)
    stated = yaml.safe_load((tmp_path / "mg/iter_0000000" / RUN_CONFIG_FILE).read_text())["model"]
    assert stated["autocast_dtype"] == {"_target_": "torch.float32", "_call_": False}
    assert stated["layernorm_zero_centered_gamma"] is True
    assert "apply_rope_fusion" not in stated
    assert (stated["kv_channels"], stated["rotary_base"]) == (16, 5e5)


def test_a_wrong_shape_of_its_own_tensor_is_named(model: Path, tmp_path: Path) -> None:
    convert.import_model(model, tmp_path / "mg", chunk_tp=1, dtype="keep", threads=2)
    (tmp_path / "mg/iter_0000000" / RUN_CONFIG_FILE).unlink()  # it would be believed first
    file = tmp_path / "mg/iter_0000000/tokenizer/config.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(raw | {"head_dim": 8}))
    with pytest.raises(CheckpointError, match=r"out_layernorm\.weight has shape"):
        open_model(tmp_path / "mg")


def test_without_its_description_it_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(weight_map.ARCHITECTURES, NAME)
    with pytest.raises(CheckpointError, match=f"{NAME} is not supported"):
        open_hf(model)
