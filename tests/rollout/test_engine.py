"""The sampler against Transformers and against itself in other batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.models import load_policy, write_hf
from support.ranks import run_ranks

PROMPTS = [[5, 9, 11], [7, 8, 10, 12, 14, 20], [30], [2, 40, 41, 42]]


def test_greedy_equals_transformers(tmp_path: Path) -> None:
    reference = write_hf("qwen3", tmp_path)
    rollouts = run_ranks(greedy, tmp_path, world=1)[0]
    for prompt, (response, logprobs) in zip(PROMPTS, rollouts, strict=True):
        with torch.no_grad():
            table = torch.log_softmax(reference(torch.tensor([prompt + response])).logits[0].float(), -1)
        predicted = table[len(prompt) - 1 : -1]
        assert predicted.argmax(-1).tolist() == response
        assert (predicted.max(-1).values - torch.tensor(logprobs)).abs().max() < 1e-5


def greedy(layout: Any, folder: Path) -> Any:
    from nemo_thinkprune.rollout.engine import MegatronEngine
    from nemo_thinkprune.rollout.types import Request, Sampling

    engine = MegatronEngine(load_policy(layout, folder), eos_ids=[3], max_rows=8)
    requests = [Request(str(i), prompt, 1) for i, prompt in enumerate(PROMPTS)]
    rollouts = engine.generate(requests, limit=40, sampling=Sampling(temperature=0.0))
    return [(r.response_ids, r.logprobs) for r in rollouts]


def test_batches_limits_and_stops(tmp_path: Path) -> None:
    write_hf("qwen2", tmp_path)
    by_rows = run_ranks(in_batches, tmp_path, world=1)[0]
    whole = by_rows[64]
    assert whole == by_rows[1] == by_rows[3] == by_rows["reversed"]
    for response, stop in whole.values():
        ends = [i for i, token in enumerate(response) if token == 3]
        if stop == "eos":
            assert ends == [len(response) - 1]  # the end token is kept, nothing follows it
        else:
            assert not ends and len(response) == 25
    stops = {stop for *_, stop in whole.values()}
    assert stops == {"eos", "limit"}  # both ways of ending were met


def in_batches(layout: Any, folder: Path) -> Any:
    from nemo_thinkprune.policy.batch import TokenSequence
    from nemo_thinkprune.rollout.engine import MegatronEngine
    from nemo_thinkprune.rollout.types import Request, Sampling

    policy = load_policy(layout, folder)
    requests = [Request(f"p{i}", prompt, 6) for i, prompt in enumerate(PROMPTS)]

    def sample(rows: int, asked: list[Any]) -> dict[Any, Any]:
        engine = MegatronEngine(policy, eos_ids=[3], max_rows=rows)
        rollouts = engine.generate(asked, limit=25, sampling=Sampling(seed=9, temperature=1.5))
        return {(asked[r.request].key, r.sample): (r.response_ids, str(r.stop_reason)) for r in rollouts}

    results = {rows: sample(rows, requests) for rows in (64, 1, 3)}
    results["reversed"] = sample(5, requests[::-1])
    engine = MegatronEngine(policy, eos_ids=[3], max_rows=64)
    policy.batch = type(policy.batch)(max_tokens=100, temperature=1.5)
    rollouts = engine.generate(requests, limit=25, sampling=Sampling(seed=9, temperature=1.5))
    trained = policy.logprobs([TokenSequence(r.prompt_ids, r.response_ids) for r in rollouts])
    for rollout, logprobs in zip(rollouts, trained, strict=True):
        assert (torch.tensor(rollout.logprobs) - logprobs).abs().max() < 1e-5
    return results
