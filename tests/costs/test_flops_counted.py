"""The FLOPs of a real Qwen2, counted by torch at every matrix product, are those of the formulas.

Attention runs in its eager form, which computes all t x t scores and masks half of them, so the count is compared with
t x t pairs; one query over the cache, as in decoding, has nothing masked and is compared as it is.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.flops import Flops, Work, forward_flops, generate_flops, model_flops, train_flops

MODEL = ModelConfig(
    architecture="Qwen2ForCausalLM",
    hidden_size=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    ffn=40,
    vocab_size=50,
    tied=False,
    rope_theta=10000.0,
    rope_scaling=None,
    rms_norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=False,
    max_position_embeddings=128,
    initializer_range=0.02,
    dtype="float32",
)


@pytest.fixture(scope="module")
def network() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        hidden_size=MODEL.hidden_size,
        num_hidden_layers=MODEL.num_layers,
        num_attention_heads=MODEL.num_heads,
        num_key_value_heads=MODEL.num_kv_heads,
        intermediate_size=MODEL.ffn,
        vocab_size=MODEL.vocab_size,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(config)


def counted(run) -> Flops:
    """What torch counts by module; the rotary embedding's outer product is not of the model's products."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    modules = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    whole = modules["Global"]
    rotary = sum(n for name, n in modules.items() if name.endswith("rotary_emb"))
    linear = {
        part: sum(n for name, n in modules.items() if name.endswith(tuple(names)))
        for part, names in {
            "projections": ("q_proj", "k_proj", "v_proj", "o_proj"),
            "mlp": (".mlp",),
            "lm_head": ("lm_head",),
        }.items()
    }
    return Flops(**linear, attention=whole - rotary - sum(linear.values()))


def test_forward_pass(network: Qwen2ForCausalLM) -> None:
    tokens = torch.arange(13)[None]
    found = counted(lambda: network(tokens))
    assert found == model_flops(MODEL, tokens=13, pairs=13 * 13, logits=13)


def test_forward_and_backward(network: Qwen2ForCausalLM) -> None:
    prompt, response = 5, 8
    tokens = torch.arange(prompt + response)[None]

    def run() -> None:
        logits = network(tokens, logits_to_keep=torch.arange(prompt - 1, prompt + response - 1)).logits
        logits.logsumexp(-1).sum().backward()

    t = prompt + response
    expected = model_flops(MODEL, tokens=t, pairs=t * t, logits=response).times(3)
    found = counted(run)
    network.zero_grad()
    assert found.total == expected.total  # torch gives some of attention's backward pass to the projections
    assert (found.mlp, found.lm_head) == (expected.mlp, expected.lm_head)
    causal = train_flops(MODEL, Work(prompts=[prompt], responses=[response])).model
    masked = 12 * MODEL.num_layers * MODEL.num_heads * MODEL.head_dim * (t * (t - 1) // 2)
    assert found.total - causal.total == masked  # scores and values of the pairs that the mask removes


def test_prefill_and_decoding_with_a_cache(network: Qwen2ForCausalLM) -> None:
    prompt, response = 6, 5
    cache = None

    def prefill() -> None:
        nonlocal cache
        cache = network(torch.arange(prompt)[None], use_cache=True, logits_to_keep=1).past_key_values

    def decode() -> None:
        for token in range(response - 1):
            network(torch.tensor([[token]]), past_key_values=cache, use_cache=True)

    expected = generate_flops(MODEL, Work(prompts=[prompt], responses=[response]))
    with torch.no_grad():
        found = counted(prefill)
        assert found == model_flops(MODEL, tokens=prompt, pairs=prompt * prompt, logits=1)
        assert expected.prefill == model_flops(
            MODEL, tokens=prompt, pairs=prompt * (prompt + 1) // 2, logits=1
        )
        assert counted(decode) == expected.decode


def test_packed_sequences_are_the_sum_of_their_own(network: Qwen2ForCausalLM) -> None:
    work = Work(prompts=[3, 7], responses=[9, 2])
    with torch.no_grad():
        found = sum((counted(lambda t=t: network(torch.arange(t)[None])) for t in (12, 9)), Flops())
    expected = forward_flops(MODEL, work)
    assert (expected.projections, expected.mlp) == (found.projections, found.mlp)
    assert expected.lm_head * (12 + 9) == found.lm_head * (9 + 2)
