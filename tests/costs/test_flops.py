"""FLOPs: by hand, by torch's counter on a real model, and against 6N."""

import pytest

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs import flops as costs
from nemo_thinkprune.costs.flops import RECOMPUTE_ALL, Flops, Work
from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.costs.shards import model_parameters


def tiny(**changes) -> ModelConfig:
    values = {
        "architecture": "Qwen2ForCausalLM",
        "hidden_size": 16,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "ffn": 40,
        "vocab_size": 50,
        "tied": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-6,
        "qkv_bias": True,
        "qk_norm": False,
        "max_position_embeddings": 128,
        "initializer_range": 0.02,
        "dtype": "float32",
    }
    return ModelConfig(**{**values, **changes})


def test_forward_by_hand():
    found = costs.forward_flops(tiny(), Work(prompts=[3], responses=[2]))
    assert found.projections == 3 * 5 * (2 * 16 * 16 + 2 * 2 * 16 * 8 + 2 * 16 * 16)
    assert found.mlp == 3 * 5 * 3 * 2 * 16 * 40
    pairs = 1 + 2 + 3 + 4 + 5
    assert found.attention == 3 * pairs * 4 * (2 * 4 + 2 * 4)  # layers x pairs x heads x (score + value)
    assert found.lm_head == 2 * 2 * 16 * 50  # two response tokens


def test_head_dim_need_not_divide_the_hidden_size():
    wide = costs.forward_flops(tiny(head_dim=8), Work(prompts=[3], responses=[2]))
    narrow = costs.forward_flops(tiny(), Work(prompts=[3], responses=[2]))
    assert (wide.projections, wide.attention) == (2 * narrow.projections, 2 * narrow.attention)
    assert wide.mlp == narrow.mlp


def test_generation_reads_a_shared_prompt_once():
    work = Work(prompts=[3, 3], responses=[2, 4], group_size=2)
    found = costs.generate_flops(tiny(), work)
    assert found.prefill == costs.model_flops(tiny(), tokens=3, pairs=6, logits=1)
    assert found.decode == costs.model_flops(tiny(), tokens=1 + 3, pairs=4 + (4 + 5 + 6), logits=4)
    apart = costs.generate_flops(tiny(), Work(prompts=[3, 3], responses=[2, 4]))
    assert apart.prefill == found.prefill.times(2)
    assert apart.decode == found.decode


def test_generating_one_sequence_is_a_forward_pass_without_its_last_token():
    found = costs.generate_flops(tiny(), Work(prompts=[7], responses=[6])).model
    whole = costs.model_flops(tiny(), tokens=12, pairs=costs.causal_pairs(12), logits=6)
    assert found == whole


def test_no_response_costs_no_decoding():
    work = Work(prompts=[7], responses=[0])
    assert costs.generate_flops(tiny(), work).decode == Flops()
    assert costs.forward_flops(tiny(), work).lm_head == 0


def test_training_is_three_forward_passes_and_recomputation_stands_apart():
    work = Work(prompts=[5, 9], responses=[11, 0])
    forward = costs.forward_flops(tiny(), work)
    plain = costs.train_flops(tiny(), work)
    assert plain.model == forward.times(3)
    assert plain.recomputed == Flops()
    full = costs.train_flops(tiny(), work, recompute=RECOMPUTE_ALL, recompute_logits=True)
    assert full.model == plain.model
    assert full.recomputed == forward
    assert full.hardware.total == 4 * forward.total
    selective = costs.train_flops(tiny(), work, recompute=["core_attn", "layernorm"], flash_attention=True)
    assert selective.recomputed == Flops(attention=forward.attention * 3 // 2)


def test_six_n_without_attention_and_embeddings():
    """With logits everywhere and no attention the count is 6 x (parameters in products) x tokens."""
    model = tiny()
    found = costs.model_flops(model, tokens=10, pairs=0, logits=10).times(3)
    layer = 16 * (16 + 8 + 8) + 16 * 16 + 3 * 16 * 40
    assert found.total == 6 * (3 * layer + 50 * 16) * 10


@pytest.mark.parametrize(
    ("name", "six_n", "palm", "nemo_rl", "shares"),
    [
        ("Qwen/QwQ-32B", 0.99, 1.06, 1.08, (0.12, 0.82, 0.03, 0.02)),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1.06, 1.23, 1.07, (0.09, 0.69, 0.09, 0.13)),
    ],
)
def test_other_counts_over_ours_as_the_docs_have_them(name, six_n, palm, nemo_rl, shares):
    model = known_models()[name]
    work = Work(prompts=[128], responses=[3200])
    ours, tokens, total = costs.train_flops(model, work).model.total, work.tokens, model_parameters(model)
    hidden, layers, query = model.hidden_size, model.num_layers, model.num_heads * model.head_dim
    assert 6 * total * tokens / ours == pytest.approx(six_n, abs=0.005)
    assert (6 * total + 12 * layers * query * tokens) * tokens / ours == pytest.approx(palm, abs=0.005)
    blocks = 6 * layers * tokens * hidden * (3 * hidden + tokens + hidden + 3 * model.ffn)
    logits = 6 * tokens * hidden * model.vocab_size
    assert (blocks + logits) / ours == pytest.approx(nemo_rl, abs=0.005)
    parts = costs.forward_flops(model, work)
    found = [n / parts.total for n in (parts.projections, parts.mlp, parts.attention, parts.lm_head)]
    assert found == pytest.approx(shares, abs=0.0051)


def test_work_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="2 prompts for 1"):
        Work(prompts=[1, 1], responses=[1])
    with pytest.raises(ValueError, match="groups of 2"):
        Work(prompts=[1, 1, 1], responses=[1, 1, 1], group_size=2)
    with pytest.raises(ValueError, match="different lengths"):
        Work(prompts=[1, 2], responses=[1, 1], group_size=2)
    with pytest.raises(ValueError, match="at least one token"):
        Work(prompts=[0], responses=[1])
    with pytest.raises(ValueError, match="moe"):
        costs.train_flops(tiny(), Work(prompts=[1], responses=[1]), recompute=["moe"])


def test_mfu_above_one_is_an_error_not_a_number_to_clip():
    value = costs.mfu(3e12, seconds=2.0, devices=4, peak=1e12)
    assert value == 0.375
    assert costs.mfu_error(value) is None
    wrong = costs.mfu(3e13, seconds=2.0, devices=4, peak=1e12)
    assert wrong == 3.75
    assert "375.0% is not possible" in costs.mfu_error(wrong)
    assert costs.mfu_error(float("nan"))
    with pytest.raises(ValueError, match="0 s"):
        costs.mfu(1, seconds=0, devices=1, peak=1)
