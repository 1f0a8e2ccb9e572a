"""The closed form of the local engine's activations against what autograd saves, to the byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from support.models import small_config
from support.ranks import run_ranks

from nemo_thinkprune.costs.activations import Recompute, Shape
from nemo_thinkprune.costs.local_activations import layer_bytes, stage_bytes
from nemo_thinkprune.costs.shards import Split

PROMPT, RESPONSE, RESPONSES = [5, 6, 7, 8, 9, 10], [9, 10, 11, 12, 13, 14, 15], 3
TOKENS = 24  # the prompt once, and each response without its last token, which predicts nothing


@dataclass(frozen=True)
class Setting:
    """How a network is held and run."""

    architecture: str = "Qwen2ForCausalLM"
    dtype: str = "float32"
    recompute: Recompute = field(default_factory=Recompute)


SETTINGS = {
    "float32": Setting(),
    "bfloat16": Setting(dtype="bfloat16"),
    "Qwen3's norms of query and key": Setting("Qwen3ForCausalLM"),
    "Qwen3 in bfloat16": Setting("Qwen3ForCausalLM", dtype="bfloat16"),
    "every layer again": Setting(recompute=Recompute("full")),
    "every layer again in bfloat16": Setting(dtype="bfloat16", recompute=Recompute("full")),
    "attention core again": Setting(recompute=Recompute("selective", ("core_attn",))),
    "MLP again": Setting(recompute=Recompute("selective", ("mlp",))),
    "both again in bfloat16": Setting(
        dtype="bfloat16", recompute=Recompute("selective", ("core_attn", "mlp"))
    ),
}


def saved_bytes(layout: Any, sequence_parallel: bool) -> dict[str, int]:
    """What autograd keeps of a forward pass of this rank's stage, by name of the setting."""
    return {name: _saved(layout, setting, sequence_parallel) for name, setting in SETTINGS.items()}


def _saved(layout: Any, setting: Setting, sequence_parallel: bool) -> int:
    import torch

    from nemo_thinkprune.policy.batch import TokenSequence
    from nemo_thinkprune.policy.model import ModelOptions
    from nemo_thinkprune.policy.policy import BatchOptions, Policy
    from nemo_thinkprune.policy.prompt_groups import pack_groups

    options = ModelOptions(
        dtype=getattr(torch, setting.dtype),
        sequence_parallel=sequence_parallel,
        activation_checkpointing=setting.recompute.granularity != "none",
        recompute_granularity=setting.recompute.granularity,
        recompute_modules=setting.recompute.modules,
    )
    device = torch.device("cpu")
    model = small_config(setting.architecture)
    policy = Policy(
        model, layout=layout, device=device, options=options, batch=BatchOptions(), optimizer=None
    )
    for parameter in policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.network.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    sequences = [TokenSequence(PROMPT, RESPONSE)] * RESPONSES
    micro = pack_groups(sequences, list(range(RESPONSES)), device=device)
    assert len(micro.tokens) == TOKENS
    policy.network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy._forward_step(iter([micro]), policy.network, loss_fn=None)
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)


def planned(setting: Setting, split: Split) -> int:
    width = 4 if setting.dtype == "float32" else 2
    shape = Shape(TOKENS, width, split, setting.recompute)
    return stage_bytes(small_config(setting.architecture), shape, 0, count=1)


@pytest.mark.parametrize("tp", [1, 2])
def test_what_autograd_keeps_is_the_closed_form(tp: int) -> None:
    split = Split(tp=tp, sequence_parallel=tp > 1)
    expected = {name: planned(setting, split) for name, setting in SETTINGS.items()}
    for found in run_ranks(saved_bytes, tp > 1, world=tp, tp=tp):
        assert found == expected


def test_a_layer_by_hand() -> None:
    """24 tokens, hidden 32, 4 heads of 8 in 2 groups, MLP 48, float32 on one rank."""
    shape = Shape(TOKENS, 4, Split(), Recompute())
    norms = 2 * 24 * (32 * 4 + 4)
    inputs = 2 * 24 * 32 * 4
    rotation = 2 * 24 * 8 * 4
    query_key_output, product = 24 * (4 + 2 + 4) * 8 * 4, 24 * (4 + 2 * 2) * 8 * 4
    scores = 24 * 4 * 4
    mlp = 3 * 24 * 48 * 4
    total = norms + inputs + rotation + query_key_output + product + scores + mlp
    assert layer_bytes(small_config("Qwen2ForCausalLM"), shape) == total == 42_048


def test_stages_hold_what_is_in_flight_and_what_passes() -> None:
    """Two stages of one layer: the first has two micro-batches and what it sent, the last has one."""
    model, split = small_config("Qwen2ForCausalLM"), Split(pp=2)
    shape = Shape(TOKENS, 4, split, Recompute())
    states, ids, final_norm = 24 * 32 * 4, 8 * 24, 24 * (32 * 4 + 4)
    layer = layer_bytes(model, shape)
    assert stage_bytes(model, shape, 0, count=5) == 2 * (layer + states + ids)
    assert stage_bytes(model, shape, 1, count=5) == layer + final_norm
