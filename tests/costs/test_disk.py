"""The size of checkpoints: by arithmetic, and against checkpoints that Megatron-Core wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models import small_config
from support.ranks import run_ranks

from checkpoints_tools.random_init import random_hf_init
from nemo_thinkprune.costs.disk import (
    StoredBytes,
    checkpoint_bytes,
    checkpoint_parameters,
    export_bytes,
    round_disk,
    stored_bytes,
)
from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.costs.shards import model_parameters
from nemo_thinkprune.recipe.load import load_recipe

MODEL = small_config(
    "Qwen2ForCausalLM", hidden_size=256, num_layers=4, ffn=1024, vocab_size=1000, head_dim=64
)
NOT_SHARED = "policy.megatron_cfg.optimizer.use_distributed_optimizer=false"


def save(layout: Any, folder: Path, out: Path, dtype: str, distributed: bool) -> None:
    """Two checkpoints of this rank's model after one update: with the optimizer and without it."""
    import torch
    from support.models import load_policy

    from nemo_thinkprune.policy.batch import TokenSequence
    from nemo_thinkprune.policy.checkpoint import save_torch_dist

    dtypes = {"bf16": dtype == "bfloat16", "params_dtype": getattr(torch, dtype)}
    policy = load_policy(
        layout,
        folder,
        optimizer={"lr": 1e-3, "use_distributed_optimizer": distributed, **dtypes},
        dtype=getattr(torch, dtype),
    )
    rows = [TokenSequence([1, 2, 3], [4, 5, 6]) for _ in range(2)]
    policy.update(rows[layout.dp_rank :: layout.dp], lambda logprobs, *_: (-logprobs.sum() / 6, {}), lr=1e-3)
    for name in ("with", "without"):
        save_torch_dist(policy, out / name, iteration=1, with_optimizer=name == "with")


@pytest.mark.parametrize(
    ("world", "dtype", "distributed"),
    [(1, "float32", False), (1, "bfloat16", False), (2, "float32", True)],
)
def test_real_checkpoints_have_these_sizes(world: int, dtype: str, distributed: bool, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    random_hf_init(MODEL, model, seed=0)
    for name in ("with", "without"):
        (out / name).mkdir(parents=True)
    run_ranks(save, model, out, dtype, distributed, world=world)
    words = [f"cluster.gpus_per_node={world}", "cluster.num_nodes=1", f"policy.precision={dtype}"]
    for name in ("with", "without"):
        recipe = load_recipe("thinkprune", [*words, f"checkpointing.save_optimizer={name == 'with'}".lower()])
        stored = stored_bytes(recipe, engine="local")
        expected = checkpoint_bytes(checkpoint_parameters(MODEL, tp=1), stored)
        files = {file.name: file.stat().st_size for file in (out / name).iterdir()}
        tensors = sum(size for file, size in files.items() if file.endswith(".distcp"))
        # each stored tensor (fc1 is two) is a zip of its own, with some 2 kB of names and directory
        count = (4 * 8 + 3) * (4 if name == "with" else 1)
        assert expected < tensors < expected + 2500 * count * world
        assert tensors == pytest.approx(expected, rel=0.01 if name == "with" else 0.02)
        assert sum(files.values()) - tensors < 100_000  # the index of tensors and some small files


def test_a_hugging_face_export_has_the_parameters_and_a_header(tmp_path: Path) -> None:
    random_hf_init(MODEL, tmp_path / "model", seed=0)
    written = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    assert written == pytest.approx(export_bytes(model_parameters(MODEL), dtype="float32"), rel=0.001)


@pytest.mark.parametrize(
    ("words", "engine", "expected"),
    [
        ([], "nemo-rl", StoredBytes(2, 2 + 8)),
        ([], "local", StoredBytes(2, 4 + 8)),
        ([], None, StoredBytes(2, 4 + 8)),
        (["checkpointing.save_optimizer=false"], None, StoredBytes(2, 0)),
        (["policy.precision=float32"], "local", StoredBytes(4, 4 + 8)),
        (["policy.precision=float32", NOT_SHARED], "local", StoredBytes(4, 8)),
    ],
)
def test_bytes_stored_for_a_parameter(words: list[str], engine: Any, expected: StoredBytes) -> None:
    assert stored_bytes(load_recipe("qwq-32b-4k-8n8g", words), engine=engine) == expected


def test_a_prune_of_qwq_32b() -> None:
    model, recipe = known_models()["Qwen/QwQ-32B"], load_recipe("qwq-32b-rounds", ["grpo.max_num_steps=190"])
    parameters = checkpoint_parameters(model, tp=4)
    assert parameters - model_parameters(model) == 2 * (297 * 512 - 152064) * 5120 == 0
    assert checkpoint_parameters(model, tp=8) - model_parameters(model) == 2 * 512 * 5120
    disk = round_disk(recipe, parameters=parameters, rounds=True, source="here", engine="local")
    assert disk.checkpoint == 14 * 32_763_876_352
    assert (disk.kept, disk.rounds, disk.source) == (10, 3, "here")
    assert disk.of_round == 10 * disk.checkpoint and disk.needed == 31 * disk.checkpoint
    off = round_disk(
        load_recipe("qwq-32b-rounds", ["checkpointing.enabled=false"]), parameters=1, rounds=True, source=""
    )
    assert off.needed == 0
