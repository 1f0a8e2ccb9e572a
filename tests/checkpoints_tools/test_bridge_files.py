"""What Megatron-Bridge and NeMo-RL find beside the weights. Bridge itself is asked where it is installed."""

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.models import MODELS as SMALL

from checkpoints_tools.bridge_files import (
    LATEST_TRAIN_STATE_FILE,
    RUN_CONFIG_FILE,
    TRAIN_STATE_FILE,
    bridge_files,
    read_run_config,
    run_config_differences,
    run_config_yaml,
    train_state_pt,
    weights_dtype,
)
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import config_to_dict
from checkpoints_tools.model_config import ModelConfig, RopeScaling
from checkpoints_tools.models import open_hf
from checkpoints_tools.plans import DType
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.to_megatron import plan_import
from checkpoints_tools.weight_map import weight_map

QWQ = ModelConfig(
    architecture="Qwen2ForCausalLM",
    hidden_size=5120,
    num_layers=64,
    num_heads=40,
    num_kv_heads=8,
    head_dim=128,
    ffn=27648,
    vocab_size=152064,
    tied=False,
    rope_theta=1e6,
    rope_scaling=None,
    rms_norm_eps=1e-5,
    qkv_bias=True,
    qk_norm=False,
    max_position_embeddings=40960,
    initializer_range=0.02,
    dtype="bfloat16",
)
TIED = dataclasses.replace(QWQ, hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn=160, tied=True)
QWEN3 = dataclasses.replace(
    TIED, architecture="Qwen3ForCausalLM", head_dim=32, qkv_bias=False, qk_norm=True, vocab_size=1000
)
LLAMA31 = RopeScaling(8.0, 1.0, 4.0, 8192)
LLAMA = dataclasses.replace(
    TIED, architecture="LlamaForCausalLM", qkv_bias=False, rope_scaling=LLAMA31, tied=False, dtype="float32"
)
MODELS = {"QwQ": QWQ, "tied Qwen2": TIED, "Qwen3": QWEN3, "Llama 3.1": LLAMA}
STORED = {"bfloat16": "BF16", "float32": "F32"}
NUMBERS_BRIDGE_READS = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}


def stored(config: ModelConfig) -> dict[str, str]:
    """The model's tensors, all in the type that config.json names."""
    return dict.fromkeys(weight_map(config).hf, STORED[config.dtype])


def model_of(config: ModelConfig) -> dict[str, Any]:
    return yaml.safe_load(run_config_yaml(config, dtype=STORED[config.dtype]))["model"]


def test_states_the_shape_of_qwq() -> None:
    model = model_of(QWQ)
    stated = {
        "num_layers": 64,
        "hidden_size": 5120,
        "ffn_hidden_size": 27648,
        "num_attention_heads": 40,
        "num_query_groups": 8,
        "kv_channels": 128,
        "vocab_size": 152064,
        "rotary_base": 1e6,
        "layernorm_epsilon": 1e-5,
        "seq_length": 40960,
        "make_vocab_size_divisible_by": 128,
        "share_embeddings_and_output_weights": False,
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "qk_layernorm": False,
        "rope_scaling": False,
        "gated_linear_unit": True,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bf16": True,
        "params_dtype": {"_target_": "torch.bfloat16", "_call_": False},
    }
    assert {name: model[name] for name in stated} == stated


def test_states_what_bridge_reads_before_it_loads() -> None:
    content = yaml.safe_load(run_config_yaml(QWQ, dtype="BF16"))
    # Bridge's loader looks these up without a default.
    assert {name: content["model"][name] for name in NUMBERS_BRIDGE_READS} == NUMBERS_BRIDGE_READS
    checkpoint = content["checkpoint"]
    assert (checkpoint["save_optim"], checkpoint["save_rng"]) == (False, False)
    assert checkpoint["ckpt_format"] == "torch_dist" and checkpoint["fully_parallel_save"] is True
    # ConfigContainer's fields without a default must be given, if only as null.
    assert {"train", "optimizer", "scheduler", "dataset", "logger", "tokenizer"} < set(content)


def test_names_only_classes_that_bridge_allows() -> None:
    targets: list[str] = []

    def collect(tree: Any) -> None:
        for key, value in tree.items():
            if key == "_target_":
                targets.append(value)
            elif isinstance(value, dict):
                collect(value)

    for config in MODELS.values():
        collect(yaml.safe_load(run_config_yaml(config, dtype="BF16")))
    assert {target.split(".")[0] for target in targets} == {"megatron", "torch"}
    assert not any(part.startswith("_") for target in targets for part in target.split("."))


@pytest.mark.parametrize(
    ("vocab", "divisor"), [(152064, 128), (151936, 128), (1000, 8), (50257, 1), (64, 64)]
)
def test_vocabulary_is_never_padded_on_one_rank(vocab: int, divisor: int) -> None:
    model = model_of(dataclasses.replace(QWQ, vocab_size=vocab))
    assert model["make_vocab_size_divisible_by"] == divisor
    assert model["should_pad_vocab"] is False


def test_states_head_width_norms_and_rotary_scaling() -> None:
    qwen3, llama = model_of(QWEN3), model_of(LLAMA)
    assert (qwen3["kv_channels"], qwen3["qk_layernorm"], qwen3["add_qkv_bias"]) == (32, True, False)
    assert (llama["rope_scaling"], llama["rope_scaling_factor"]) == (True, 8.0)
    assert (llama["bf16"], llama["fp16"]) == (False, False)
    assert model_of(TIED)["share_embeddings_and_output_weights"] is True


def test_refuses_a_rotary_scaling_that_megatron_does_not_have() -> None:
    other = dataclasses.replace(LLAMA, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 4096))
    with pytest.raises(CheckpointError, match="original_max_position_embeddings is 4096"):
        run_config_yaml(other, dtype="F32")


def test_train_state_is_what_bridge_would_load() -> None:
    state = torch.load(io.BytesIO(train_state_pt(7)), weights_only=True)
    assert {name: tensor.item() for name, tensor in state.items()} == {
        "step": 7,
        "consumed_train_samples": 0,
        "skipped_train_samples": 0,
        "consumed_valid_samples": 0,
        "floating_point_operations_so_far": 0.0,
        "do_train": False,
        "do_valid": False,
        "do_test": False,
    }
    assert state["step"].dtype == torch.int32 and state["do_train"].dtype == torch.bool
    assert train_state_pt(7) == train_state_pt(7)


@pytest.mark.parametrize(
    ("dtype", "precision"), [("keep", "bfloat16"), ("fp32", "float32"), ("bf16", "bfloat16")]
)
def test_states_the_type_that_is_written(tmp_path: Path, dtype: DType, precision: str) -> None:
    random_hf_init(SMALL["qwen2"], tmp_path / "hf", seed=1)
    plan = plan_import(open_hf(tmp_path / "hf"), tmp_path / "out", dtype=dtype)
    model = yaml.safe_load(plan.texts[f"iter_0000000/{RUN_CONFIG_FILE}"])["model"]
    assert model["params_dtype"] == {"_target_": f"torch.{precision}", "_call_": False}
    assert (model["bf16"], model["fp16"]) == (precision == "bfloat16", False)


def test_the_type_of_the_weights_is_that_of_the_matrices() -> None:
    assert QWQ.dtype == "bfloat16"
    wide_norms = {name: "F32" if "norm" in name else "F16" for name in stored(QWQ)}
    assert weights_dtype(QWQ, wide_norms) == "F16"
    model = yaml.safe_load(bridge_files(QWQ, "i", 0, dtypes=wide_norms)[f"i/{RUN_CONFIG_FILE}"])["model"]
    assert (model["bf16"], model["fp16"]) == (False, True)


def test_files_lie_where_bridge_looks() -> None:
    files = bridge_files(QWQ, "iter_0000000", 0, dtypes=stored(QWQ))
    assert set(files) == {
        f"iter_0000000/{RUN_CONFIG_FILE}",
        f"iter_0000000/{TRAIN_STATE_FILE}",
        LATEST_TRAIN_STATE_FILE,
    }


def test_reads_back_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / RUN_CONFIG_FILE).write_bytes(run_config_yaml(QWQ, dtype="BF16"))
    content = read_run_config(tmp_path)
    assert content is not None and content["model"]["num_layers"] == 64
    assert run_config_differences(content, QWQ) == []
    assert read_run_config(tmp_path / "nothing") is None


def test_says_where_a_run_had_another_model() -> None:
    content = yaml.safe_load(
        run_config_yaml(dataclasses.replace(QWQ, rope_theta=10000.0, tied=True), dtype="BF16")
    )
    assert run_config_differences(content, QWQ) == [
        f"share_embeddings_and_output_weights is True in {RUN_CONFIG_FILE}, False in config.json",
        f"rotary_base is 10000.0 in {RUN_CONFIG_FILE}, 1000000.0 in config.json",
    ]
    assert run_config_differences({"model": {"kv_channels": None}}, QWQ) == []
    assert run_config_differences({"model": "GPT"}, QWQ) == []


HOSTILE = {
    "object": "model: !!python/object/apply:os.system ['touch FILE']\n",
    "list": "- 1\n",
    "damaged": "model: {\n",
    "deep": "[" * 20000,
    "bytes": b"\xff\xfe\x00",
    "large": b"#" * (2 << 20),
    "aliases": "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)),
    "endless": "a: &a {a: *a}\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_refuses_a_hostile_run_config(tmp_path: Path, kind: str) -> None:
    content = HOSTILE[kind]
    if isinstance(content, str):
        content = content.replace("FILE", str(tmp_path / "touched")).encode()
    (tmp_path / RUN_CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError):
        read_run_config(tmp_path)
    assert not (tmp_path / "touched").exists()


def _comparable(value: Any) -> Any:
    return (value.func, value.args, value.keywords) if isinstance(value, functools.partial) else value


@pytest.mark.parametrize("name", MODELS)
def test_bridge_makes_the_same_model_of_it_as_of_the_hugging_face_config(tmp_path: Path, name: str) -> None:
    pytest.importorskip("megatron.bridge", reason="Megatron-Bridge is not installed", exc_type=ImportError)
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.config import ConfigContainer
    from megatron.bridge.training.utils.checkpoint_utils import read_train_state
    from megatron.bridge.utils.instantiate_utils import InstantiationMode
    from transformers import AutoConfig

    for file, content in bridge_files(MODELS[name], ".", 3, dtypes=stored(MODELS[name])).items():
        (tmp_path / file).write_bytes(content)
    run = ConfigContainer.from_yaml(str(tmp_path / RUN_CONFIG_FILE), mode=InstantiationMode.STRICT)
    hf = config_to_dict(MODELS[name])
    bridge = AutoBridge.from_hf_config(AutoConfig.for_model(**hf))
    expected = bridge.to_megatron_provider(load_weights=False)
    for provider in (run.model, expected):
        provider.hf_model_id = None
        provider.apply_rope_fusion = False  # refused without TransformerEngine
        provider.finalize()
    assert type(run.model) is type(expected)
    fields = [field.name for field in dataclasses.fields(expected)]
    ours, theirs = ({n: _comparable(getattr(p, n)) for n in fields} for p in (run.model, expected))
    assert {n: (ours[n], theirs[n]) for n in fields if ours[n] != theirs[n]} == {}
    assert read_train_state(str(tmp_path / LATEST_TRAIN_STATE_FILE)).step == 3
