"""Training in bfloat16 with fp32 main weights: a checkpoint holds all there is, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import load_policy, write_hf
from support.ranks import run_ranks

LR = 1e-3


def bfloat16_policy(layout: Any, folder: Path, distributed: bool) -> Any:
    optimizer = {
        "lr": LR,
        "weight_decay": 0.01,
        "bf16": True,
        "params_dtype": torch.bfloat16,
        "use_distributed_optimizer": distributed,
    }
    return load_policy(layout, folder, optimizer=optimizer, dtype=torch.bfloat16)


def update(policy: Any, seed: int) -> dict[str, Any]:
    """One update; its numbers and the weights after it, as bit patterns."""
    from nemo_thinkprune.policy.batch import TokenSequence
    from nemo_thinkprune.policy.weights import iter_hf_tensors

    generator = torch.Generator().manual_seed(seed)
    rows = [TokenSequence(*torch.randint(61, (2, 12), generator=generator).tolist()) for _ in range(4)]
    layout = policy.layout
    share = rows[layout.dp_rank :: layout.dp]
    result = policy.update(share, lambda logprobs, entropy, micro: (-logprobs.sum() / 48, {}), lr=LR)
    tensors = dict(iter_hf_tensors([policy.network], policy.model))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    weights = {name: tensor.clone().view(torch.int16).tolist() for name, tensor in tensors.items()}
    return {"loss": result.loss, "grad_norm": result.grad_norm, "weights": weights}


def save_and_go_on(layout: Any, folder: Path, out: Path, distributed: bool) -> list[dict[str, Any]]:
    from nemo_thinkprune.policy.checkpoint import save_torch_dist

    policy = bfloat16_policy(layout, folder, distributed)
    first = update(policy, 1)
    save_torch_dist(policy, out, iteration=1)
    return [first, update(policy, 2), update(policy, 3)]


def load_and_go_on(layout: Any, folder: Path, out: Path, distributed: bool) -> list[dict[str, Any]]:
    from nemo_thinkprune.policy.checkpoint import load_torch_dist

    policy = bfloat16_policy(layout, folder, distributed)
    assert load_torch_dist(policy, out, with_optimizer=True) == 1
    return [update(policy, 2), update(policy, 3)]


@pytest.mark.parametrize("distributed", [False, True], ids=["plain", "distributed_optimizer"])
def test_updates_after_loading_equal_those_after_saving(distributed: bool, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "weights"
    write_hf("qwen2", model)
    out.mkdir()
    first, *expected = run_ranks(save_and_go_on, model, out, distributed, world=1)[0]
    assert run_ranks(load_and_go_on, model, out, distributed, world=1)[0] == expected
    for name, weight in first["weights"].items():  # moments and fp32 weights matter: every tensor moves on
        assert weight != expected[1]["weights"][name], name
    assert expected[0]["loss"] != expected[1]["loss"]


def three_updates(layout: Any, folder: Path, distributed: bool) -> list[dict[str, Any]]:
    policy = bfloat16_policy(layout, folder, distributed)
    return [update(policy, seed) for seed in (1, 2, 3)]


def test_two_ranks_that_share_the_optimizer_train_as_one(tmp_path: Path) -> None:
    """Two ranks add gradients up in another order: close, and to the bit the same weights on both."""
    write_hf("qwen2", tmp_path)
    expected = run_ranks(three_updates, tmp_path, False, world=1)[0]
    ours, theirs = run_ranks(three_updates, tmp_path, True, world=2)
    assert ours == theirs
    for update_of_two, update_of_one in zip(ours, expected, strict=True):
        for key in ("loss", "grad_norm"):
            assert update_of_two[key] == pytest.approx(update_of_one[key], rel=1e-2), key
