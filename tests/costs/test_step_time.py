"""A whole step: phases add up, GPUs set aside run beside, and the moves are the bytes that move."""

from dataclasses import replace

import pytest
from test_train_time import GPU, MACHINE, MODEL

from nemo_thinkprune.costs.flops import Work, mfu, train_flops
from nemo_thinkprune.costs.shards import Split
from nemo_thinkprune.costs.step_time import Engines, Step, engine_speed, step_time
from nemo_thinkprune.costs.train_time import Rows, parameters

ENGINES = Engines(count=2, tp=1, weight_bytes=500_000, cache_tokens=5000, token_bytes=512, most_sequences=100)
STEP = Step(
    model=MODEL,
    split=Split(dp=2),
    engines=ENGINES,
    colocated=True,
    work=Work(prompts=[10] * 8, responses=[90, 50] * 4, group_size=4),
    updates=2,
    train_rows=Rows(tokens=100),
    logprob_rows=Rows(tokens=200),
    passes=2,
    reference=True,
    recompute=(),
    weight_bytes=400_000,
    optimizer_bytes=800_000,
)


def test_shared_gpus_do_one_phase_after_another():
    found = step_time(MACHINE, STEP)
    assert [p.name for p in found.phases] == [
        "generate", "log-probs", "update", "optimizer", "refit", "host copies", "other",
    ]  # fmt: skip
    assert found.seconds == pytest.approx(sum(p.seconds for p in found.phases))
    assert found.tokens == 8 * 10 + 4 * (90 + 50)
    assert found.tokens_per_gpu_second == pytest.approx(found.tokens / found.seconds / 2)
    flops = train_flops(MODEL, STEP.work).model.total
    assert found.train_mfu == pytest.approx(mfu(flops, seconds=found.phase("update"), devices=2, peak=1e9))
    assert 0 < found.train_mfu <= 1


def test_generation_of_gpus_set_aside_runs_beside_training():
    together = step_time(MACHINE, STEP)
    apart = step_time(MACHINE, replace(STEP, colocated=False))
    rest = sum(p.seconds for p in apart.phases if p.name != "generate")
    assert apart.gpus == 4
    assert apart.seconds == pytest.approx(max(apart.phase("generate"), rest))
    assert apart.phase("host copies") < together.phase("host copies")


def test_log_probs_cost_as_many_passes_as_are_made():
    two = step_time(MACHINE, STEP)
    one = step_time(MACHINE, replace(STEP, passes=1, reference=False))
    none = step_time(MACHINE, replace(STEP, passes=0, reference=False))
    assert two.phase("log-probs") == pytest.approx(2 * one.phase("log-probs"))
    assert none.phase("log-probs") == 0.0
    assert two.phase("update") == none.phase("update")


def test_bytes_that_move():
    found = step_time(MACHINE, STEP)
    assert found.phase("host copies") == pytest.approx((2 * 1_200_000 + 3 * 400_000) / 1e6)
    assert found.phase("refit") == 0.0  # one rank holds the whole model
    split = step_time(MACHINE, replace(STEP, split=Split(tp=2, dp=1)))
    assert split.phase("refit") == pytest.approx(parameters(MODEL) * 2 / 2 / 1e7)
    state = (2 * 800_000 + 2 * 400_000 / 2) / 1e8
    assert found.phase("optimizer") == pytest.approx(2 * (state + 2 * (1 / 2) * 400_000 / 1e7))


def test_an_engine_reads_weights_without_the_embedding_and_shares_work_over_its_gpus():
    one = engine_speed(MACHINE, MODEL, ENGINES)
    embedding = 256 * 64 * 2
    assert one.weights == pytest.approx((500_000 - embedding) / 1e8)
    assert one.sequence_compute == pytest.approx(2 * parameters(MODEL) / 1e9)
    assert one.cached_token == pytest.approx(512 / 1e8)
    assert one.sequence_reduce == 0.0
    two = engine_speed(MACHINE, MODEL, replace(ENGINES, tp=2))
    assert two.sequence_compute == pytest.approx(one.sequence_compute / 2)
    assert two.sequence_reduce == pytest.approx(2 * 4 * 64 * 2 / 1e7)
    tied = engine_speed(MACHINE, replace(MODEL, tied=True), ENGINES)
    assert tied.weights == pytest.approx(500_000 / 1e8)


def test_more_of_anything_is_not_slower():
    base = step_time(MACHINE, STEP).seconds
    for name in ("bf16_flops", "memory_bandwidth", "link_bandwidth", "host_bandwidth"):
        better = replace(MACHINE, gpu=replace(GPU, **{name: 2 * getattr(GPU, name)}))
        assert step_time(better, STEP).seconds < base, name
