"""config.json is read in both spellings and everything unsupported is refused by name."""

import json

import pytest

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import config_from_dict, config_to_dict, read_hf_config
from checkpoints_tools.model_config import RopeScaling

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "max_window_layers": 3,
    "model_type": "qwen2",
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": 1024,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 500,
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA = {key: value for key, value in QWEN2.items() if "window" not in key and key != "use_mrope"} | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rope_scaling": LLAMA3_ROPE,
}


def without(raw, *keys):
    return {key: value for key, value in raw.items() if key not in keys}


def test_qwen2_in_transformers_4_spelling():
    config = config_from_dict(QWEN2)
    assert (config.architecture, config.num_kv_heads, config.head_dim) == ("Qwen2ForCausalLM", 2, 8)
    assert (config.rope_theta, config.rope_scaling, config.dtype) == (1e6, None, "bfloat16")
    assert config.qkv_bias and not config.qk_norm and not config.tied


def test_transformers_5_spelling_means_the_same():
    new = without(QWEN2, "rope_theta", "torch_dtype") | {
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        "dtype": "bfloat16",
        "layer_types": ["full_attention"] * 3,
        "sliding_window": None,
    }
    assert config_from_dict(new) == config_from_dict(QWEN2)


def test_llama3_rope_in_both_spellings():
    new = without(LLAMA, "rope_theta", "rope_scaling") | {
        "rope_parameters": LLAMA3_ROPE | {"rope_theta": 1e6}
    }
    assert config_from_dict(new) == config_from_dict(LLAMA)
    assert config_from_dict(LLAMA).rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


def test_qwen3_head_dim_is_not_derived_from_the_hidden_size():
    raw = QWEN2 | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False}
    assert config_from_dict(raw).head_dim == 128
    config = config_from_dict(raw | {"head_dim": 64})
    assert config.head_dim == 64 and config.qk_norm and not config.qkv_bias


def test_missing_optional_keys_mean_what_transformers_says():
    config = config_from_dict(
        without(LLAMA, "num_key_value_heads", "rope_theta", "rms_norm_eps", "torch_dtype")
    )
    assert (config.num_kv_heads, config.rope_theta, config.rms_norm_eps) == (6, 10000.0, 1e-6)
    assert config.dtype == "float32"


@pytest.mark.parametrize("raw", [QWEN2, LLAMA, QWEN2 | {"tie_word_embeddings": True}])
def test_written_config_reads_back_and_transformers_agrees(raw):
    transformers = pytest.importorskip("transformers")
    config = config_from_dict(raw)
    written = json.loads(json.dumps(config_to_dict(config, eos_token_id=7)))
    assert config_from_dict(written) == config
    theirs = transformers.AutoConfig.for_model(**written)
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.rope_parameters["rope_type"] == ("llama3" if config.rope_scaling else "default")
    assert (theirs.tie_word_embeddings, theirs.eos_token_id) == (config.tied, 7)
    assert config_from_dict(theirs.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM.*Llama.*Qwen2.*Qwen3"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForSequenceClassification"),
        ({"architectures": ["Qwen2ForCausalLM", "LlamaForCausalLM"]}, "must name one class"),
        ({"architectures": None, "model_type": "gemma"}, "gemma"),
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "mixture-of-experts.*Qwen3Moe"),
        ({"num_experts": 8}, "mixture-of-experts.*num_experts = 8"),
        ({"use_sliding_window": True, "max_window_layers": 2}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding_attention"),
        ({"use_mrope": True}, "use_mrope"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "'mrope'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta is given twice"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA3_ROPE}, "disagree"),
        ({"rope_scaling": without(LLAMA3_ROPE, "factor")}, "lacks factor"),
        ({"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor > low_freq_factor"),
        ({"rope_scaling": "yarn"}, "must be an object"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"new_feature": 3}, "new_feature = 3"),
        ({"num_key_value_heads": 4}, "not a multiple of num_key_value_heads 4"),
        ({"hidden_size": 50}, "hidden_size 50"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"vocab_size": None}, "vocab_size must be a positive integer"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be"),
        ({"vocab_size": True}, "vocab_size must be"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"dtype": "float32"}, "dtype and torch_dtype disagree"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_unsupported_is_refused_by_name(change, named):
    with pytest.raises(CheckpointError, match=named):
        config_from_dict(QWEN2 | change)


def test_sliding_window_that_no_layer_uses_is_accepted():
    assert config_from_dict(QWEN2 | {"use_sliding_window": True}) == config_from_dict(QWEN2)


def test_read_config_takes_a_file_or_a_folder_and_names_it_in_errors(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_hf_config(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(QWEN2))
    assert read_hf_config(tmp_path) == read_hf_config(file) == config_from_dict(QWEN2)
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "not a JSON object"),
        ("[" * 99999, "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=f"config.json.*{message}"):
            read_hf_config(tmp_path)
