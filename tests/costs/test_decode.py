"""The simulated engine: a single batch by hand, the cache's limit, preemption, and conservation of tokens."""

import random
from dataclasses import replace

import pytest

from nemo_thinkprune.costs.decode import EngineSpeed, generate_seconds
from nemo_thinkprune.costs.lengths import cut_lengths, cut_share
from nemo_thinkprune.recipe.errors import UserError

SPEED = EngineSpeed(
    weights=1.0,
    sequence_compute=0.25,
    sequence_reduce=0.01,
    cached_token=0.001,
    prompt_token=0.1,
    prompt_pair=0.0,
    cache_tokens=10_000,
    most_sequences=1000,
)


def stepped(speed: EngineSpeed, prompts: list[int], responses: list[int]) -> tuple[float, int, int]:
    """The same engine one step at a time, without any arithmetic shortcut."""
    waiting = [(i, p, r) for i, (p, r) in enumerate(zip(prompts, responses, strict=True))]
    running: list[list[int]] = []
    seconds, steps, preempted = 0.0, 0, 0
    while waiting or running:
        while waiting and len(running) < speed.most_sequences:
            if sum(s[1] for s in running) + waiting[0][1] + len(running) + 1 > speed.cache_tokens:
                break
            running.append(list(waiting.pop(0)))
            seconds += speed.prefill(running[-1][1])
        while sum(s[1] for s in running) + len(running) > speed.cache_tokens:
            waiting.insert(0, tuple(running.pop()))
            preempted += 1
        steps += 1
        for sequence in running:
            sequence[1] += 1
            sequence[2] -= 1
        cached = sum(s[1] for s in running)
        compute = max(speed.weights, len(running) * speed.sequence_compute)
        seconds += compute + len(running) * speed.sequence_reduce + cached * speed.cached_token
        running = [s for s in running if s[2]]
    return seconds, steps, preempted


def test_one_batch_by_hand():
    found = generate_seconds(SPEED, [5, 5], [3, 1])
    first = 1.0 + 2 * 0.01 + (6 + 6) * 0.001
    then = 2 * (1.0 + 0.01) + (7 + 8) * 0.001
    assert found.decode == pytest.approx(first + then)
    assert found.prefill == pytest.approx(2 * 5 * 0.1)
    assert (found.steps, found.tokens, found.preemptions, found.again) == (3, 4, 0, 0.0)


def test_a_large_batch_is_limited_by_its_products():
    found = generate_seconds(SPEED, [1] * 8, [1] * 8)
    assert found.decode == pytest.approx(8 * 0.25 + 8 * 0.01 + 8 * 2 * 0.001)


def test_a_shared_prompt_is_read_once():
    alone = generate_seconds(SPEED, [50] * 4, [10] * 4)
    shared = generate_seconds(SPEED, [50] * 4, [10] * 4, group_size=2)
    assert shared.prefill == pytest.approx(alone.prefill / 2)
    assert shared.decode == alone.decode


@pytest.mark.parametrize("cache", [120, 200, 1000])
@pytest.mark.parametrize("most", [3, 1000])
def test_simulation_equals_one_step_at_a_time(cache: int, most: int):
    draw = random.Random(3)
    speed = replace(SPEED, cache_tokens=cache, most_sequences=most, prompt_pair=0.002)
    prompts = [draw.randrange(1, 30) for _ in range(40)]
    responses = [draw.randrange(1, 80) for _ in range(40)]
    found = generate_seconds(speed, prompts, responses)
    seconds, steps, preempted = stepped(speed, prompts, responses)
    assert found.seconds == pytest.approx(seconds)
    assert (found.steps, found.preemptions) == (steps, preempted)
    assert (preempted > 0) == (cache < 3 * 109 or most > 3)  # three of the longest fit, or all come at once
    assert found.mean_batch == pytest.approx(sum(responses) / steps)


def test_a_sequence_that_can_never_fit_is_refused():
    with pytest.raises(UserError, match="gpu_memory_utilization"):
        generate_seconds(replace(SPEED, cache_tokens=50), [20], [31])


@pytest.mark.parametrize("mean", [120.0, 1000.0, 3251.0, 3990.0])
def test_lengths_have_the_mean_that_was_asked_for(mean: float):
    lengths = cut_lengths(2048, mean=mean, limit=3992)
    assert sum(lengths) / 2048 == pytest.approx(mean, rel=2e-3)
    assert max(lengths) <= 3992 and min(lengths) >= 1
    share = lengths.count(3992) / 2048
    assert share == pytest.approx(cut_share(mean=mean, limit=3992), abs=2e-3)


def test_each_stretch_of_lengths_looks_like_the_whole():
    lengths = cut_lengths(2048, mean=3251, limit=3992)
    whole = sum(lengths) / 2048
    for start in range(0, 2048, 256):
        assert sum(lengths[start : start + 256]) / 256 == pytest.approx(whole, rel=0.02)


def test_all_at_the_limit_and_nonsense():
    assert cut_lengths(3, mean=10, limit=10) == [10, 10, 10]
    with pytest.raises(ValueError, match="limit of 10"):
        cut_lengths(3, mean=11, limit=10)
