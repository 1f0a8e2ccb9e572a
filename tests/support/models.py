"""Small random Hugging Face models, written by Transformers, and policies built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ("qwen2", "qwen2_untied", "qwen3", "llama3")


def write_hf(family: str, folder: Path, *, seed: int = 0) -> Any:
    """Save a random model of the family (vocabulary 61, so that Megatron pads it); returns the HF model."""
    import torch
    import transformers as hf

    shared: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 61,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "tie_word_embeddings": family == "qwen2",
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    torch.manual_seed(seed)
    if family.startswith("qwen2"):
        model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**shared))
    elif family == "qwen3":
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**shared, head_dim=24))
    else:
        scaling = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**shared, rope_parameters=scaling))
    model = model.float()
    with torch.no_grad():  # norms and biases start at 1 and 0: make a wrong one visible
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def load_policy(layout: Any, folder: Path, *, optimizer: dict[str, Any] | None = None, **options: Any) -> Any:
    """A `Policy` with the folder's weights; `optimizer` holds OptimizerConfig arguments, None: not trainable."""
    import torch
    from megatron.core.optimizer import OptimizerConfig

    from checkpoints_tools.hf_config import read_hf_config
    from nemo_thinkprune.policy.model import ModelOptions
    from nemo_thinkprune.policy.policy import BatchOptions, Policy
    from nemo_thinkprune.policy.weights import load_hf

    config = read_hf_config(Path(folder))
    policy = Policy(
        config,
        layout=layout,
        device=torch.device("cpu"),
        options=ModelOptions(**options),
        batch=BatchOptions(max_tokens=100, logprob_chunk=32),
        optimizer=OptimizerConfig(optimizer="adam", clip_grad=1.0, **optimizer) if optimizer else None,
    )
    load_hf([policy.network], config, folder)
    policy.make_trainable()
    return policy
