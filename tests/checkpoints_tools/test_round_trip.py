"""What real megatron-core saved comes out as Hugging Face tensors, bit by bit, and goes back in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import Save, Saves, assert_same, dcp_tensors, hf_tensors, reference_hf
from support.models import small_config
from support.ranks import run_ranks

from checkpoints_tools.convert import export_model, import_model, reshard
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.random_init import random_hf_init

QWEN2 = small_config("Qwen2ForCausalLM", num_layers=4, dtype="bfloat16")
QWEN3 = small_config("Qwen3ForCausalLM", num_layers=4, head_dim=16, tied=True)
LLAMA = small_config("LlamaForCausalLM", vocab_size=70, tied=True, dtype="bfloat16")

CASES = {
    "one rank": (QWEN2, Save()),
    "tp": (QWEN2, Save(tp=2)),
    "pp": (QWEN3, Save(pp=2)),
    "tp and pp": (QWEN2, Save(tp=2, pp=2)),
    "tp and pp, tied": (LLAMA, Save(tp=2, pp=2)),
    "unequal stages": (QWEN2, Save(pp=2, first_stage=1)),
    "a key for each layer": (QWEN3, Save(per_layer=True)),
    "a key for each layer, tp and pp": (QWEN2, Save(tp=2, pp=2, per_layer=True)),
    "optimizer": (QWEN2, Save(tp=2, pp=2, optimizer="adam")),
    "optimizer, fp32": (LLAMA, Save(tp=2, optimizer="adam")),
    "distributed optimizer": (QWEN3, Save(dp=2, optimizer="distributed")),
    "optimizer and a key for each layer": (QWEN2, Save(tp=2, dp=2, per_layer=True, optimizer="distributed")),
    "fp32 norms": (QWEN2, Save(tp=2, pp=2, fp32_norms=True, optimizer="adam")),
    "no common.pt": (QWEN3, Save(tp=2, common_state=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_export_is_what_torch_reads(saves: Saves, tmp_path: Path, case: str) -> None:
    config, save = CASES[case]
    checkpoint, out = saves(config, save), tmp_path / "hf"
    expected = reference_hf(checkpoint, config)
    source = hf_tensors(saves.source(config))
    if save.optimizer is None and not save.fp32_norms:
        assert_same(expected, source)
    else:
        assert any(not torch.equal(expected[name], source[name]) for name in source)
    export_model(checkpoint, out, base=saves.source(config))
    assert_same(hf_tensors(out), expected)


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_export_in_one_dtype_rounds_as_torch_does(
    saves: Saves, tmp_path: Path, dtype: Any, kind: torch.dtype
) -> None:
    config, save = CASES["fp32 norms"]
    checkpoint = saves(config, save)
    stored = reference_hf(checkpoint, config)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.float32}
    export_model(checkpoint, tmp_path / "hf", base=saves.source(config), dtype=dtype)
    assert_same(hf_tensors(tmp_path / "hf"), {name: tensor.to(kind) for name, tensor in stored.items()})


def test_files_beside_the_weights_are_carried_over(saves: Saves, tmp_path: Path) -> None:
    source, out = saves.source(QWEN2), tmp_path / "hf"
    export_model(saves(QWEN2, Save(tp=2)), out, base=source, max_shard_bytes=50_000)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in hf_tensors(source).values())
    assert set(index["weight_map"].values()) == {f.name for f in out.glob("*.safetensors")}
    assert not (tmp_path / "hf.partial").exists()


@pytest.mark.parametrize("config", [QWEN2, QWEN3, LLAMA], ids=lambda c: c.architecture)
@pytest.mark.parametrize("chunk_tp", [1, 2])
def test_import_is_what_torch_reads(saves: Saves, tmp_path: Path, config: ModelConfig, chunk_tp: int) -> None:
    import_model(saves.source(config), tmp_path / "megatron", chunk_tp=chunk_tp)
    folder = iteration(tmp_path / "megatron")
    assert_same(reference_hf(folder, config), hf_tensors(saves.source(config)))
    # The keys and shapes are those of a save; only the padding of the vocabulary is a matter of the layout.
    ours, theirs = dcp_tensors(folder), dcp_tensors(saves(config, Save()))
    assert sorted(ours) == sorted(theirs)
    vocabulary = ("embedding.word_embeddings.weight", "output_layer.weight")
    for name in set(ours) - set(vocabulary):
        assert ours[name].shape == theirs[name].shape and ours[name].dtype == theirs[name].dtype, name
    export_model(tmp_path / "megatron", tmp_path / "hf")
    assert_same(hf_tensors(tmp_path / "hf"), hf_tensors(saves.source(config)))


def _load(layout: Any, source: Path, checkpoint: Path) -> dict[str, Any]:
    """Load into a network whose weights are NaN; the gathered weights on rank 0."""
    from support.models import load_policy

    from checkpoints_tools.hf_config import read_hf_config
    from nemo_thinkprune.policy.checkpoint import load_torch_dist
    from nemo_thinkprune.policy.weights import iter_hf_tensors

    dtype = getattr(torch, read_hf_config(source).dtype)
    policy = load_policy(layout, source, dtype=dtype)
    for parameter in policy.network.parameters():
        parameter.data.fill_(float("nan"))
    load_torch_dist(policy, checkpoint, with_optimizer=False)
    tensors = dict(iter_hf_tensors([policy.network], policy.model))
    # As float32, which numpy knows: a torch tensor would be shared with a process that ends.
    return {n: t.float().numpy().copy() for n, t in tensors.items() if t is not None}


LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize("config", [QWEN2, QWEN3], ids=lambda c: c.architecture)
def test_megatron_loads_an_import(
    saves: Saves, tmp_path: Path, config: ModelConfig, tp: int, pp: int
) -> None:
    source = saves.source(config)
    import_model(source, tmp_path / "megatron", chunk_tp=2)
    folder = iteration(tmp_path / "megatron")
    loaded = run_ranks(_load, source, folder, world=tp * pp, tp=tp, pp=pp)[0]
    expected = hf_tensors(source)
    assert sorted(loaded) == sorted(expected)
    wrong = [n for n, tensor in expected.items() if not (loaded[n] == tensor.float().numpy()).all()]
    assert wrong == []


@pytest.mark.parametrize("case", ["tp and pp", "optimizer and a key for each layer", "no common.pt"])
def test_resharding_changes_chunks_only(saves: Saves, tmp_path: Path, case: str) -> None:
    config, save = CASES[case]
    checkpoint = saves(config, save)
    reshard(checkpoint, tmp_path / "out", chunk_tp=2, base=saves.source(config))
    folder = iteration(tmp_path / "out")
    assert_same(reference_hf(folder, config), reference_hf(checkpoint, config))
    before, after = dcp_tensors(checkpoint), dcp_tensors(folder)
    kept = {key: tensor for key, tensor in before.items() if key.startswith("optimizer.")}
    assert_same({key: tensor for key, tensor in after.items() if key.startswith("optimizer.")}, kept)
    assert (save.optimizer is None) == (not kept)


def test_config_larger_than_the_checkpoint_is_an_error(saves: Saves, tmp_path: Path) -> None:
    from checkpoints_tools.errors import CheckpointError

    larger = tmp_path / "larger"
    shutil.copytree(saves.source(QWEN2), larger)
    values = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps(values | {"vocab_size": 600}))
    with pytest.raises(CheckpointError, match="600"):
        export_model(saves(QWEN2, Save()), tmp_path / "hf", base=larger)
    assert not (tmp_path / "hf").exists()


def test_a_random_model_of_odd_vocabulary_survives(tmp_path: Path) -> None:
    config = small_config("LlamaForCausalLM", vocab_size=129, num_layers=1, head_dim=4)
    random_hf_init(config, tmp_path / "a", 1, randomize_all=True)
    import_model(tmp_path / "a", tmp_path / "b")
    export_model(tmp_path / "b", tmp_path / "c")
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == (
        tmp_path / "a" / "model.safetensors"
    ).read_bytes()


def iteration(root: Path) -> Path:
    """The folder that holds `.metadata` under what `import` or `reshard` made."""
    found = [file.parent for file in root.rglob(".metadata")]
    assert len(found) == 1
    return found[0]
