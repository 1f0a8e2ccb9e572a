"""Tensor, pipeline and data parallel layouts equal one rank; one rank equals Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import FAMILIES, load_policy, write_hf
from support.ranks import run_ranks

LAYOUTS = {
    "tp2": {"world": 2, "tp": 2},
    "tp2_sequence_parallel": {"world": 2, "tp": 2, "sequence_parallel": True},
    "pp2": {"world": 2, "pp": 2},
    "tp2_pp2": {"world": 4, "tp": 2, "pp": 2},
    "dp2": {"world": 2},
    "dp2_distributed_optimizer": {"world": 2, "distributed_optimizer": True},
    "pp2_recompute": {"world": 2, "pp": 2, "activation_checkpointing": True},
    "dp2_tp2": {"world": 4, "tp": 2, "distributed_optimizer": True},
    "tp2_pp2_sequence_parallel": {"world": 4, "tp": 2, "pp": 2, "sequence_parallel": True},
}
CASES = [(family, name) for family in ("qwen2", "qwen3") for name in LAYOUTS] + [("llama3", "tp2_pp2")]
SEQUENCES = [(5, 19), (9, 7), (3, 30), (12, 1), (4, 25), (7, 16), (2, 11), (10, 40)]


def sequences() -> list[Any]:
    from nemo_thinkprune.policy.batch import TokenSequence

    generator = torch.Generator().manual_seed(7)
    rows = []
    for index, (prompt, response) in enumerate(SEQUENCES):
        ids = torch.randint(61, (prompt + response,), generator=generator).tolist()
        advantage = [1.0 if index % 2 else -1.5] * response
        rows.append(TokenSequence(ids[:prompt], ids[prompt:], {"advantages": advantage}))
    return rows


def measure(layout: Any, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that must not depend on the layout: log-probs, samples, loss, gradient norm, trained weights."""
    from nemo_thinkprune.policy.weights import iter_hf_tensors
    from nemo_thinkprune.rollout.engine import MegatronEngine
    from nemo_thinkprune.rollout.types import Request, Sampling

    distributed = options.pop("distributed_optimizer", False)
    optimizer = {
        "lr": 1e-3,
        "weight_decay": 0.01,
        # Adam divides each gradient by its own size: with the usual 1e-8 rounding noise in a gradient that vanishes
        # (a key bias, an unused token's embedding) becomes a full step of lr in a random direction.
        "adam_eps": 1e-4,
        "use_distributed_optimizer": distributed,
    }
    policy = load_policy(layout, folder, optimizer=optimizer, **options)
    rows = sequences()
    logprobs = policy.logprobs(rows)
    engine = MegatronEngine(policy, eos_ids=[3], max_rows=7)
    requests = [Request(f"p{i}", row.prompt_ids, 3) for i, row in enumerate(rows)]
    rollouts = engine.generate(requests, limit=24, sampling=Sampling(seed=5))
    total = sum(len(row.response_ids) for row in rows)

    def loss_fn(logprobs: Any, entropy: Any, micro: Any) -> Any:
        ratio = torch.exp(logprobs - logprobs.detach())
        return -(ratio * micro.fields["advantages"]).sum() / total, {"entropy": entropy.sum()}

    share = rows[layout.dp_rank :: layout.dp]
    updates = [policy.update(share, loss_fn, lr=1e-3) for _ in range(3)]
    weights = {name: tensor for name, tensor in iter_hf_tensors([policy.network], policy.model)}
    return {
        "logprobs": [x.tolist() for x in logprobs],
        "tokens": [r.response_ids for r in rollouts],
        "stop": [str(r.stop_reason) for r in rollouts],
        "sampled_logprobs": [r.logprobs for r in rollouts],
        "loss": [u.loss for u in updates],
        "grad_norm": [u.grad_norm for u in updates],
        "entropy": [u.sums["entropy"] for u in updates],
        "weights": {n: t.clone().numpy() for n, t in weights.items()} if layout.is_main else None,
    }


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_hf(request.param, folder)
    return folder


@pytest.fixture(scope="module")
def serial(model_folder: Path) -> dict[str, Any]:
    return run_ranks(measure, model_folder, {}, world=1)[0]


@pytest.mark.parametrize(("model_folder", "name"), CASES, indirect=["model_folder"])
def test_layout_equals_one_rank(name: str, model_folder: Path, serial: dict[str, Any]) -> None:
    options = dict(LAYOUTS[name])
    shape = {key: options.pop(key) for key in ("world", "tp", "pp") if key in options}
    results = run_ranks(measure, model_folder, options, **shape)
    for rank in results:
        assert rank["tokens"] == serial["tokens"]
        assert rank["stop"] == serial["stop"]
        close(rank["logprobs"], serial["logprobs"], 1e-5)
        close(rank["sampled_logprobs"], serial["sampled_logprobs"], 1e-5)
        for key in ("loss", "grad_norm", "entropy"):
            assert rank[key] == pytest.approx(serial[key], rel=1e-5, abs=1e-6)
    for tensor, expected in serial["weights"].items():
        assert abs(results[0]["weights"][tensor] - expected).max() < 1e-6, tensor


def test_updates_move_the_weights(model_folder: Path, serial: dict[str, Any]) -> None:
    from safetensors.numpy import load_file

    before = load_file(model_folder / "model.safetensors")
    moved = [abs(serial["weights"][name] - before[name]).max() for name in before]
    assert min(moved) > 1e-5  # else equal weights would prove nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_transformers(family: str, tmp_path: Path) -> None:
    reference = write_hf(family, tmp_path)
    logprobs = run_ranks(forward, tmp_path, world=1)[0]
    for row, ours in zip(sequences(), logprobs, strict=True):
        ids = torch.tensor([row.prompt_ids + row.response_ids])
        with torch.no_grad():
            theirs = torch.log_softmax(reference(ids).logits[0].float(), dim=-1)[len(row.prompt_ids) - 1 : -1]
        theirs = theirs.gather(1, torch.tensor(row.response_ids)[:, None]).squeeze(1)
        assert (theirs - torch.tensor(ours)).abs().max() < 1e-5


def forward(layout: Any, folder: Path) -> list[list[float]]:
    return [x.tolist() for x in load_policy(layout, folder).logprobs(sequences())]


def close(ours: list[list[float]], expected: list[list[float]], tolerance: float) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert (torch.tensor(a) - torch.tensor(b)).abs().max() < tolerance
