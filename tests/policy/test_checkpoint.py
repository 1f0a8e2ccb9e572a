"""torch_dist checkpoints: bytes come back, under any layout, with the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import load_policy, write_hf
from support.ranks import run_ranks

OPTIMIZER = {"lr": 1e-3, "weight_decay": 0.01, "adam_eps": 1e-4}


def update(policy: Any) -> None:
    """One step that moves every weight."""
    from nemo_thinkprune.policy.batch import TokenSequence

    layout = policy.layout
    generator = torch.Generator().manual_seed(3)
    rows = [TokenSequence(*torch.randint(61, (2, 12), generator=generator).tolist()) for _ in range(4)]
    policy.update(
        rows[layout.dp_rank :: layout.dp],
        lambda logprobs, entropy, micro: (-logprobs.sum() / 48, {}),
        lr=1e-3,
    )


def weights(policy: Any) -> dict[str, np.ndarray]:
    from nemo_thinkprune.policy.weights import iter_hf_tensors

    tensors = dict(iter_hf_tensors([policy.network], policy.model))
    return {name: tensor.clone().numpy() for name, tensor in tensors.items()} if policy.layout.is_main else {}


def save_then_go_on(layout: Any, folder: Path, out: Path, distributed: bool) -> tuple[dict, dict]:
    from nemo_thinkprune.policy.checkpoint import save_torch_dist

    policy = load_policy(layout, folder, optimizer={**OPTIMIZER, "use_distributed_optimizer": distributed})
    for _ in range(2):
        update(policy)
    save_torch_dist(policy, out, iteration=2)
    saved = weights(policy)
    update(policy)
    return saved, weights(policy)


def load_then_go_on(layout: Any, folder: Path, out: Path, distributed: bool) -> tuple[dict, dict, int]:
    from nemo_thinkprune.policy.checkpoint import load_torch_dist

    policy = load_policy(layout, folder, optimizer={**OPTIMIZER, "use_distributed_optimizer": distributed})
    iteration = load_torch_dist(policy, out, with_optimizer=True)
    loaded = weights(policy)
    update(policy)
    return loaded, weights(policy), iteration


LAYOUTS = {
    "one": {"world": 1},
    "tp2_pp2": {"world": 4, "tp": 2, "pp": 2},
    "dp2": {"world": 2},
}


@pytest.mark.parametrize(
    ("writer", "reader", "distributed"),
    [
        ("one", "one", False),
        ("tp2_pp2", "tp2_pp2", False),
        ("tp2_pp2", "one", False),
        ("one", "tp2_pp2", False),
        ("dp2", "dp2", True),
        ("dp2", "one", True),
    ],
)
def test_saved_state_goes_on_elsewhere(writer: str, reader: str, distributed: bool, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "weights"
    write_hf("qwen2", model)
    out.mkdir()
    saved, next_saved = run_ranks(save_then_go_on, model, out, distributed, **LAYOUTS[writer])[0]
    loaded, next_loaded, iteration = run_ranks(load_then_go_on, model, out, distributed, **LAYOUTS[reader])[0]
    assert iteration == 2
    for name, tensor in saved.items():
        assert np.array_equal(loaded[name], tensor), name
    same = writer == reader
    for name, tensor in next_saved.items():  # the optimizer's moments came along
        if same:
            assert np.array_equal(next_loaded[name], tensor), name
        else:
            assert abs(next_loaded[name] - tensor).max() < 1e-6, name
        assert not np.array_equal(tensor, saved[name]), name
