"""Read and write Hugging Face config.json, strictly.

What would change the model and is not implemented is refused by name, never ignored; so is a key that is
neither known here nor switched off. Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`,
`torch_dtype`) and 5 (`rope_parameters`, `dtype`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints_tools.errors import CheckpointError, printable
from checkpoints_tools.model_config import ModelConfig, RopeScaling
from checkpoints_tools.small_files import read_text
from checkpoints_tools.weight_map import ARCHITECTURES, Architecture, supported

# Far beyond any model, and small enough that what is computed from them is too.
_MOST = {
    "num_hidden_layers": 10_000, "num_attention_heads": 1 << 16, "num_key_value_heads": 1 << 16,
    "vocab_size": 1 << 24, "max_position_embeddings": 1 << 40, "original_max_position_embeddings": 1 << 40,
}  # fmt: skip
_MOST_OTHERS = 1 << 20
_MOST_GROUPS = 1 << 16  # of all layers: each is some pieces of the weight map
_DTYPES = ("bfloat16", "float16", "float32")

# fmt: off
# Keys that are read below, and keys that say nothing about the weights or the forward pass.
_READ = frozenset((
    "architectures", "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size", "tie_word_embeddings",
    "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "max_position_embeddings",
    "initializer_range", "dtype", "torch_dtype", "hidden_act", "attention_dropout", "use_sliding_window",
    "sliding_window", "max_window_layers", "layer_types",
))
_HARMLESS = frozenset((
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "transformers_version", "pretraining_tp",
    "is_encoder_decoder", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "return_dict",
    "output_attentions", "output_hidden_states", "torchscript", "tokenizer_class", "task_specific_params",
    "prefix",
))
# fmt: on
_MOE_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def read_hf_config(path: str | Path) -> ModelConfig:
    """Read config.json, or the one in a model folder.

    Raises CheckpointError when the file is missing, malformed, or describes a model that is not supported.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    text = read_text(file)
    if text is None:
        raise CheckpointError(f"{file} does not exist; give a Hugging Face model folder")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    try:
        return config_from_dict(raw)
    except CheckpointError as error:
        # It may quote the file, which is not to be trusted with a terminal.
        raise CheckpointError(f"{file}: {printable(str(error), most=400)}") from None


def config_from_dict(raw: Mapping[str, Any]) -> ModelConfig:
    """Check the content of config.json and take what a model is made of. Raises CheckpointError."""
    architecture = _architecture(raw)
    _refuse_unsupported(raw)
    theta, scaling = _rope(raw, architecture)
    heads = _positive_int(raw, "num_attention_heads")
    hidden = _positive_int(raw, "hidden_size")
    kv_heads = heads if raw.get("num_key_value_heads") is None else _positive_int(raw, "num_key_value_heads")
    if heads % kv_heads:
        raise CheckpointError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if kv_heads * _positive_int(raw, "num_hidden_layers") > _MOST_GROUPS:
        raise CheckpointError("num_hidden_layers x num_key_value_heads is larger than any model's")
    return ModelConfig(
        architecture=architecture.name,
        hidden_size=hidden,
        num_layers=_positive_int(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(raw, architecture, hidden, heads),
        ffn=_positive_int(raw, "intermediate_size"),
        vocab_size=_positive_int(raw, "vocab_size"),
        tied=_flag(raw, "tie_word_embeddings", architecture.default_tied),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=_positive_float(raw, "rms_norm_eps", architecture.default_rms_norm_eps),
        qkv_bias=architecture.qkv_bias,
        qk_norm=architecture.qk_norm,
        max_position_embeddings=_positive_int(raw, "max_position_embeddings"),
        initializer_range=_positive_float(raw, "initializer_range", 0.02),
        dtype=_dtype(raw),
    )


def config_to_dict(config: ModelConfig, **token_ids: int | list[int] | None) -> dict[str, Any]:
    """Content of a config.json for the model, readable by transformers 4 and 5.

    `token_ids`: bos_token_id, eos_token_id, pad_token_id.
    """
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    scaling: dict[str, Any] | None = None
    if config.rope_scaling is not None:
        scaling = {"rope_type": "llama3"} | {
            key: getattr(config.rope_scaling, key) for key in RopeScaling.__slots__
        }
        rope |= scaling
    return {
        "architectures": [config.architecture],
        "attention_dropout": 0.0,
        **token_ids,
        "dtype": config.dtype,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": ARCHITECTURES[config.architecture].model_type,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": rope,
        "rope_scaling": scaling,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.dtype,
        "vocab_size": config.vocab_size,
    }


def _architecture(raw: Mapping[str, Any]) -> Architecture:
    names, model_type = raw.get("architectures"), raw.get("model_type")
    if not names:
        names = [a.name for a in ARCHITECTURES.values() if a.model_type == model_type] or [str(model_type)]
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(f"architectures must name one class, not {names!r}")
    name = names[0]
    experts = next((key for key in _MOE_COUNTS if raw.get(key)), None)
    if "moe" in name.lower() or "mixtral" in name.lower() or experts:
        what = f"{experts} = {raw[experts]}" if experts else name
        raise CheckpointError(
            f"mixture-of-experts models are out of scope ({what}); supported: {supported()}"
        )
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise CheckpointError(f"architecture {name} is not supported; supported: {supported()}")
    if model_type not in (None, architecture.model_type):
        raise CheckpointError(f"model_type {model_type!r} does not belong to {name}")
    return architecture


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    if raw.get("quantization_config"):
        raise CheckpointError(
            "quantization_config: quantised weights are not supported; use the original model"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"hidden_act {raw['hidden_act']!r} is not supported, only silu")
    if raw.get("attention_dropout"):
        raise CheckpointError(f"attention_dropout {raw['attention_dropout']!r} is not supported, only 0.0")
    layer_types = raw.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise CheckpointError(f"layer_types must be a list, not {layer_types!r}")
    others = {str(kind) for kind in layer_types} - {"full_attention"}
    if others:
        raise CheckpointError(f"layer_types {sorted(others)} are not supported, only full_attention")
    slides = _flag(raw, "use_sliding_window") and raw.get("sliding_window") is not None
    first = raw.get("max_window_layers")
    unused = type(first) is int and first >= _positive_int(raw, "num_hidden_layers")
    if slides and not layer_types and not unused:
        raise CheckpointError(
            f"use_sliding_window: sliding window attention (window {raw['sliding_window']}) is not supported"
        )
    for key, value in raw.items():
        # A value that is off (null, false, 0, empty) cannot change the model, whatever the key means.
        if key not in _READ and key not in _HARMLESS and not key.startswith("_") and value:
            raise CheckpointError(
                f"{key} = {value!r} is not supported; remove the key if it does not change the model"
            )


def _rope(raw: Mapping[str, Any], architecture: Architecture) -> tuple[float, RopeScaling | None]:
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    for key, part in (("rope_parameters", new), ("rope_scaling", old)):
        if part is not None and not isinstance(part, dict):
            raise CheckpointError(f"{key} must be an object, not {part!r}")
    thetas = {
        _positive_float(part, "rope_theta", 0.0)
        for part in (raw, new or {})
        if part.get("rope_theta") is not None
    }
    if len(thetas) > 1:
        raise CheckpointError(f"rope_theta is given twice with different values: {sorted(thetas)}")
    scalings = {_rope_scaling(part) for part in (new, old) if part is not None}
    if len(scalings) > 1:
        raise CheckpointError("rope_parameters and rope_scaling disagree")
    return next(iter(thetas), architecture.default_rope_theta), next(iter(scalings), None)


def _rope_scaling(raw: Mapping[str, Any]) -> RopeScaling | None:
    kind = raw.get("rope_type", raw.get("type", "default"))
    fields = RopeScaling.__slots__
    known = {"rope_type", "type", "rope_theta", *(fields if kind == "llama3" else ())}
    if kind not in ("default", "llama3"):
        raise CheckpointError(f"rope_type {kind!r} is not supported, only default and llama3")
    extra = sorted(key for key, value in raw.items() if key not in known and value is not None)
    if raw.get("partial_rotary_factor") == 1.0:
        extra.remove("partial_rotary_factor")
    if extra:
        raise CheckpointError(f"rope option {', '.join(extra)} is not supported with rope_type {kind}")
    if kind == "default":
        return None
    missing = [field for field in fields if raw.get(field) is None]
    if missing:
        raise CheckpointError(f"rope_type llama3 lacks {', '.join(missing)}")
    scaling = RopeScaling(
        factor=_positive_float(raw, "factor", 0.0),
        low_freq_factor=_positive_float(raw, "low_freq_factor", 0.0),
        high_freq_factor=_positive_float(raw, "high_freq_factor", 0.0),
        original_max_position_embeddings=_positive_int(raw, "original_max_position_embeddings"),
    )
    if scaling.factor < 1 or scaling.high_freq_factor <= scaling.low_freq_factor:
        raise CheckpointError("rope_type llama3 needs factor >= 1 and high_freq_factor > low_freq_factor")
    return scaling


def _head_dim(raw: Mapping[str, Any], architecture: Architecture, hidden: int, heads: int) -> int:
    if raw.get("head_dim") is not None:
        head_dim = _positive_int(raw, "head_dim")
    elif architecture.default_head_dim is not None:
        head_dim = architecture.default_head_dim
    elif hidden % heads:
        raise CheckpointError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    else:
        head_dim = hidden // heads
    if head_dim % 2:
        raise CheckpointError(f"head_dim {head_dim} is odd; rotary embedding needs an even one")
    return head_dim


def _dtype(raw: Mapping[str, Any]) -> str:
    values = {str(raw[key]).removeprefix("torch.") for key in ("dtype", "torch_dtype") if raw.get(key)}
    if len(values) > 1:
        raise CheckpointError(f"dtype and torch_dtype disagree: {sorted(values)}")
    value = next(iter(values), "float32")
    if value not in _DTYPES:
        raise CheckpointError(f"dtype {value!r} is not supported, only {', '.join(_DTYPES)}")
    return value


def _positive_int(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if type(value) is not int or value <= 0:
        raise CheckpointError(f"{key} must be a positive integer, not {value!r}")
    most = _MOST.get(key, _MOST_OTHERS)
    if value > most:
        raise CheckpointError(f"{key} is larger than any model's ({most})")
    return value


def _positive_float(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key, default)
    # Compared, not converted: a whole number may be too large for a float.
    if type(value) not in (int, float) or not 0 < value < 1e300:
        raise CheckpointError(f"{key} must be a positive number, not {value!r}")
    return float(value)


def _flag(raw: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = raw.get(key)
    if value is not None and type(value) is not bool:
        raise CheckpointError(f"{key} must be true or false, not {value!r}")
    return default if value is None else value
