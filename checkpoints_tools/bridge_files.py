"""What lies beside the weights so that Megatron-Bridge and NeMo-RL start from a checkpoint without their own import.

Bridge keeps a model's configuration as YAML that names Python classes (`_target_`, as Hydra does) and calls them
with the other keys. Names and meanings are those of Megatron-Bridge's `GPTModelProvider`, `ConfigContainer` and
`TrainState`; only what 0.3.1 to 0.6.0 all know is written, and what they derive on the machine that loads
(initialisers, fusions that depend on the hardware) is left to them.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.model_config import ModelConfig, RopeScaling
from checkpoints_tools.small_files import read_yaml
from checkpoints_tools.torch_dist.pickle_out import Call, Global, Stored, Value, pickled
from checkpoints_tools.weight_map import ARCHITECTURES, weight_map

RUN_CONFIG_FILE, TRAIN_STATE_FILE = "run_config.yaml", "train_state.pt"
LATEST_TRAIN_STATE_FILE = "latest_train_state.pt"

_CONFIG = "megatron.bridge.training.config."
# Megatron-Core's rotary embedding takes the factor and fixes the rest to Llama 3.1's values.
_MEGATRON_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_MAX_VALUES = 200_000


def bridge_files(
    config: ModelConfig, iteration_name: str, iteration: int, *, dtypes: Mapping[str, str]
) -> dict[str, bytes]:
    """Bridge's small files by path below the checkpoint folder; `iteration_name` is the iteration's folder.

    `dtypes`: Hugging Face name to safetensors dtype of the tensors as they are written. Bridge takes the
    iteration from `latest_train_state.pt`: in Megatron-LM's tracker file it refuses 0.

    Raises:
        CheckpointError: Megatron cannot run the model (see `run_config_yaml`).
    """
    state = train_state_pt(iteration)
    return {
        f"{iteration_name}/{RUN_CONFIG_FILE}": run_config_yaml(config, dtype=weights_dtype(config, dtypes)),
        f"{iteration_name}/{TRAIN_STATE_FILE}": state,
        LATEST_TRAIN_STATE_FILE: state,
    }


def weights_dtype(config: ModelConfig, dtypes: Mapping[str, str]) -> str:
    """Safetensors dtype of most of the model's elements: norms may be wider than the matrices beside them."""
    elements: Counter[str] = Counter()
    for name, shape in weight_map(config).hf.items():
        elements[dtypes[name]] += prod(shape)
    return elements.most_common(1)[0][0]


def run_config_yaml(config: ModelConfig, *, dtype: str) -> bytes:
    """Content of `run_config.yaml`, which `ConfigContainer.from_yaml` reads in strict mode.

    `dtype`: safetensors dtype of the stored weights, which config.json need not say. Bridge runs the model in
    it unless told otherwise; NeMo-RL sets the recipe's policy.precision in its place.

    Raises:
        CheckpointError: The model has a rotary scaling that Megatron-Core does not have.
    """
    import yaml

    container: dict[str, Any] = {
        "_target_": _CONFIG + "ConfigContainer",
        "checkpoint": {
            "_target_": _CONFIG + "CheckpointConfig",
            "ckpt_format": "torch_dist",
            # Read by Bridge's loader, which then does not ask for optimizer and random states.
            "save_optim": False,
            "save_rng": False,
            "fully_parallel_save": True,
        },
        "logger": {"_target_": _CONFIG + "LoggerConfig"},
        "model": _model(config, _TORCH_DTYPES[dtype]),
        "optimizer": {
            "_target_": "megatron.core.optimizer.optimizer_config.OptimizerConfig",
            "use_distributed_optimizer": False,
        },
        "tokenizer": {
            "_target_": "megatron.bridge.training.tokenizers.config.TokenizerConfig",
            "tokenizer_type": "HuggingFaceTokenizer",
        },
        **dict.fromkeys(("dataset", "ddp", "dist", "scheduler", "train")),
    }
    return yaml.safe_dump(container, sort_keys=True).encode()


def _model(config: ModelConfig, dtype: str) -> dict[str, Any]:
    _check_rope(config.rope_scaling)
    own = ARCHITECTURES[config.architecture].bridge
    return {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        **_shape(config),
        "activation_func": _named("torch.nn.functional.silu"),
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "gated_linear_unit": True,
        "hidden_dropout": 0.0,
        "init_method_std": config.initializer_range,
        "make_vocab_size_divisible_by": _power_of_two(config.vocab_size),
        "normalization": "RMSNorm",
        "params_dtype": _named(f"torch.{dtype}"),
        "pipeline_model_parallel_size": 1,
        "position_embedding_type": "rope",
        "seq_length": config.max_position_embeddings,
        "should_pad_vocab": False,
        "tensor_model_parallel_size": 1,
        **{name: _named(value) if isinstance(value, str) else value for name, value in own.items()},
    }


def _shape(config: ModelConfig) -> dict[str, Any]:
    """What the weights and the forward pass depend on."""
    return {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.ffn,
        "num_attention_heads": config.num_heads,
        "num_query_groups": config.num_kv_heads,
        "kv_channels": config.head_dim,
        "vocab_size": config.vocab_size,
        "share_embeddings_and_output_weights": config.tied,
        "add_qkv_bias": config.qkv_bias,
        "qk_layernorm": config.qk_norm,
        "layernorm_epsilon": config.rms_norm_eps,
        "rotary_base": config.rope_theta,
        "rope_scaling": config.rope_scaling is not None,
        "rope_scaling_factor": 1.0 if config.rope_scaling is None else config.rope_scaling.factor,
    }


def _check_rope(scaling: RopeScaling | None) -> None:
    if scaling is None:
        return
    for name, value in _MEGATRON_LLAMA3.items():
        if getattr(scaling, name) != value:
            raise CheckpointError(
                f"rope_scaling: {name} is {getattr(scaling, name)}, but Megatron-Core has it fixed at {value}; "
                "no Megatron program would compute what the model was trained to"
            )


def _named(target: str) -> dict[str, Any]:
    return {"_target_": target, "_call_": False}


def _power_of_two(vocab_size: int) -> int:
    """The largest power of two up to 128 that divides the vocabulary: what Bridge would round it up to."""
    return min(vocab_size & -vocab_size, 128)


# Where these differ, the two may still mean one model: Bridge pads the vocabulary, and its Llama providers scale
# the rotary frequencies themselves and leave Megatron's own scaling off.
_AMBIGUOUS = ("vocab_size", "rope_scaling", "rope_scaling_factor")


def run_config_differences(
    run_config: Mapping[str, Any], config: ModelConfig, *, certain: bool = False
) -> list[str]:
    """Where a run's configuration describes another model than `config`, one sentence each.

    What the run does not state is not compared; with `certain`, nor is what may differ and mean the same.
    """
    model = run_config.get("model")
    if not isinstance(model, Mapping):
        return []
    return [
        f"{name} is {str(stated)[:40]} in {RUN_CONFIG_FILE}, {value!r} in config.json"
        for name, value in _shape(config).items()
        if isinstance(stated := _number(model.get(name)), bool | int | float)
        and stated != value
        and not (certain and name in _AMBIGUOUS)
    ]


def states_the_model(run_config: Mapping[str, Any]) -> bool:
    """Whether a run's configuration tells how the attention's rows are laid out."""
    model = run_config.get("model")
    return isinstance(model, Mapping) and type(model.get("num_attention_heads")) is int


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-06, without a dot, as text."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\d*)?[eE][-+]?\d{1,3}", value):
        return float(value)
    return value


def read_run_config(folder: Path) -> Mapping[str, Any] | None:
    """What `run_config.yaml` in an iteration's folder holds, None where there is none.

    Plain values: nothing that `_target_` names is looked up or called.

    Raises:
        CheckpointError: It is too large, damaged, no mapping, or its aliases blow it up.
    """
    file = folder / RUN_CONFIG_FILE
    content = read_yaml(file)
    if content is not None and sum(1 for _ in _values(content)) > _MAX_VALUES:
        raise CheckpointError(
            f"{file} unfolds to more than {_MAX_VALUES} values; it is no run's configuration"
        )
    return content


def _values(tree: Any) -> Iterator[Any]:
    """The tree's values, aliases unfolded, at most one more than the limit."""
    pending, count = [tree], 0
    while pending and count <= _MAX_VALUES:
        value = pending.pop()
        count += 1
        yield value
        room = _MAX_VALUES + 1 - count
        if isinstance(value, Mapping):
            pending.extend(list(value.values())[:room])
        elif isinstance(value, list):
            pending.extend(value[:room])


def train_state_pt(step: int) -> bytes:
    """Content of `train_state.pt`, as torch.save writes a dict of 0-d tensors: `step`, the rest zero."""
    counts = ("consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    state = {
        "step": ("IntStorage", struct.pack("<i", step)),
        **dict.fromkeys(counts, ("IntStorage", bytes(4))),
        "floating_point_operations_so_far": ("DoubleStorage", bytes(8)),
        **dict.fromkeys(("do_train", "do_valid", "do_test"), ("BoolStorage", bytes(1))),
    }
    tensors: dict[Value, Value] = {
        name: _scalar(storage, key) for key, (name, (storage, _)) in enumerate(state.items())
    }
    members = {"data.pkl": pickled(tensors), "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": content for key, (_, content) in enumerate(state.values())}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # members are stored, not compressed
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"train_state/{name}"), content)
    return stream.getvalue()


def _scalar(storage: str, key: int) -> Call:
    place = Stored(("storage", Global("torch", storage), str(key), "cpu", 1))
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (place, 0, (), (), False, hooks))
