"""Seconds of passes over packed rows: by hand on a machine whose numbers are simple."""

from dataclasses import replace

import pytest

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.flops import RECOMPUTE_ALL, Work, forward_flops, model_flops, train_flops
from nemo_thinkprune.costs.gpus import Gpu
from nemo_thinkprune.costs.shards import Split
from nemo_thinkprune.costs.time_assumptions import TimeAssumptions
from nemo_thinkprune.costs.train_time import FORWARD, Machine, Rows, parameters, pass_time, training_pass

MODEL = ModelConfig(
    architecture="Qwen2ForCausalLM",
    hidden_size=64,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    ffn=128,
    vocab_size=256,
    tied=False,
    rope_theta=1e6,
    rope_scaling=None,
    rms_norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=False,
    max_position_embeddings=4096,
    initializer_range=0.02,
    dtype="bfloat16",
)
GPU = Gpu(
    name="unit",
    memory_bytes=10**9,
    bf16_flops=1e9,
    memory_bandwidth=1e8,
    link_bandwidth=1e7,
    network_bandwidth=1e6,
    host_bandwidth=1e6,
    source="none",
)
PERFECT = TimeAssumptions(
    layer_efficiency=1.0,
    small_layer_efficiency=1.0,
    decode_bandwidth=1.0,
    link_efficiency=1.0,
    network_efficiency=1.0,
    host_efficiency=1.0,
    fixed_seconds=0.0,
)
MACHINE = Machine(gpu=GPU, gpus_per_node=8, assumed=PERFECT)


def test_parameters_are_those_in_products():
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128
    assert parameters(MODEL) == 4 * layer + 256 * 64


def test_rows_are_packed_first_fit_and_filled_for_a_pipeline():
    rows = Rows(tokens=100, multiple=8)
    assert rows.micro_batches([60, 33, 50, 9, 30]) == [[64, 32], [56, 40], [16]]
    full = replace(rows, full=True)
    assert [sum(row) for row in full.micro_batches([60, 33, 50, 9, 30])] == [100, 100, 100]
    assert Rows(tokens=None, sequences=2).micro_batches([5, 9, 3]) == [[9, 9], [9]]


def test_one_gpu_takes_its_flops_at_the_efficiency():
    found = pass_time(MACHINE, MODEL, Split(), FORWARD, lengths=[40, 60], rows=Rows(tokens=100))
    flops = model_flops(MODEL, tokens=100, pairs=40 * 41 // 2 + 60 * 61 // 2, logits=100).total
    assert found.seconds == pytest.approx(flops / 1e9)
    assert (found.communication, found.bubble, found.rows, found.padding) == (0.0, 0.0, 1, 0.0)
    loose = pass_time(MACHINE, MODEL, Split(), FORWARD, lengths=[40, 60], rows=Rows(tokens=None, sequences=2))
    assert loose.padding == pytest.approx(20 / 120)
    half = replace(MACHINE, assumed=replace(PERFECT, small_layer_efficiency=0.5))
    slow = pass_time(half, MODEL, Split(), FORWARD, lengths=[40, 60], rows=Rows(tokens=100))
    assert slow.seconds == pytest.approx(2 * found.seconds)


@pytest.mark.parametrize("recompute", [(), RECOMPUTE_ALL, ("core_attn",), ("mlp",)])
def test_training_executes_the_hardware_flops_of_the_exact_count(recompute):
    work = Work(prompts=[1], responses=[99])
    expected = train_flops(MODEL, work, recompute=recompute, flash_attention=True).hardware
    every_position = 3 * model_flops(MODEL, tokens=0, pairs=0, logits=100).lm_head
    what = training_pass(recompute)
    found = pass_time(MACHINE, MODEL, Split(), what, lengths=[100], rows=Rows(tokens=100))
    wanted = expected.projections + expected.mlp + expected.attention + every_position
    assert found.seconds == pytest.approx(wanted / 1e9)


def test_tensor_parallel_ranks_share_flops_and_pay_all_reduces():
    one = pass_time(MACHINE, MODEL, Split(), FORWARD, lengths=[100], rows=Rows(tokens=100))
    two = pass_time(MACHINE, MODEL, Split(tp=2), FORWARD, lengths=[100], rows=Rows(tokens=100))
    reduce = 2 * (1 / 2) * 100 * 64 * 2 / 1e7
    assert two.communication == pytest.approx(4 * 2 * reduce)
    assert two.seconds == pytest.approx(one.seconds / 2 + two.communication)
    apart = replace(MACHINE, gpus_per_node=1)
    slow = pass_time(apart, MODEL, Split(tp=2), FORWARD, lengths=[100], rows=Rows(tokens=100))
    assert slow.communication == pytest.approx(10 * two.communication)


def test_a_pipeline_waits_for_its_slowest_stage_and_its_bubble():
    split = Split(pp=2)
    fast = replace(MACHINE, gpu=replace(GPU, link_bandwidth=1e30, network_bandwidth=1e30))
    found = pass_time(fast, MODEL, split, FORWARD, lengths=[100] * 6, rows=Rows(tokens=100))
    whole = forward_flops(MODEL, Work(prompts=[1], responses=[99]))
    last = (whole.projections + whole.mlp + whole.attention) / 2 + model_flops(
        MODEL, tokens=0, pairs=0, logits=100
    ).lm_head
    assert found.rows == 6
    assert found.seconds == pytest.approx((6 + 2 - 1) * last / 1e9)
    assert found.bubble == pytest.approx(last / 1e9)


def test_recomputed_layers_communicate_once_more():
    split = Split(tp=2)
    plain = pass_time(MACHINE, MODEL, split, training_pass(()), lengths=[100], rows=Rows(tokens=100))
    again = pass_time(
        MACHINE, MODEL, split, training_pass(RECOMPUTE_ALL), lengths=[100], rows=Rows(tokens=100)
    )
    assert again.communication == pytest.approx(plain.communication * 3 / 2)


def test_context_parallel_ranks_share_tokens_and_exchange_keys_and_values():
    one = pass_time(MACHINE, MODEL, Split(), FORWARD, lengths=[100], rows=Rows(tokens=100))
    two = pass_time(MACHINE, MODEL, Split(cp=2), FORWARD, lengths=[100], rows=Rows(tokens=100))
    exchanged = 4 * (2 * 32 * 2) * 50 / 1e7  # layers x bytes of a token's keys and values x the other half
    assert two.seconds == pytest.approx(one.seconds / 2 + exchanged)
