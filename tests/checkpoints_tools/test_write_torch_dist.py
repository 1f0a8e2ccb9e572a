"""Checkpoints that were written without torch, as torch and real megatron-core read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import Saves, assert_same, dcp_tensors, hf_tensors, reference_hf
from support.models import MODELS, small_config
from support.ranks import run_ranks
from support.write_torch_dist import megatron_tensors, write_model

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.plan_chunks import file_sizes, plan_chunks
from checkpoints_tools.weight_map import weight_map

CONFIGS = {**MODELS, "qwen2_tied": small_config("Qwen2ForCausalLM", tied=True)}
OPTIONS = {
    "qwen2": {},
    "qwen3": {"chunk_tp": 2, "max_chunk_bytes": 5000, "max_file_bytes": 60_000},
    "llama": {"chunk_tp": 4},
    "qwen2_tied": {"max_chunk_bytes": 3000},
}


@pytest.fixture(scope="module")
def written(saves: Saves, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Name of the model to its Hugging Face folder and its checkpoint."""
    root, folders = tmp_path_factory.mktemp("written"), {}
    for name, config in CONFIGS.items():
        source = saves.source(config)
        write_model(hf_tensors(source), config, root / name, **OPTIONS[name])
        folders[name] = source, root / name
    return folders


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_reads_every_tensor(written: dict[str, tuple[Path, Path]], name: str) -> None:
    source, folder = written[name]
    hf = hf_tensors(source)
    assert_same(dcp_tensors(folder), megatron_tensors(hf, CONFIGS[name]))
    assert_same(reference_hf(folder, CONFIGS[name]), hf)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_megatron_loads_every_parameter(written: dict[str, tuple[Path, Path]], tp: int, pp: int) -> None:
    """With its defaults and its objects, and through the local engine, which asks for neither."""
    for faults in run_ranks(_faults, written, world=tp * pp, tp=tp, pp=pp):
        assert faults == []


def _faults(layout: Any, folders: dict[str, tuple[Path, Path]]) -> list[str]:
    from support.models import load_policy

    from nemo_thinkprune.policy.checkpoint import load_torch_dist

    faults = []
    for name, (source, folder) in folders.items():
        policy = load_policy(layout, source)
        expected = {n: p.detach().clone() for n, p in policy.network.named_parameters()}
        for way in (_load_as_transformer_engine, load_torch_dist):
            for parameter in policy.network.parameters():
                parameter.data.fill_(7)
            if way is load_torch_dist:
                assert load_torch_dist(policy, folder, with_optimizer=False) == 7
            else:
                _load_as_transformer_engine(policy.network, folder)
            parameters = policy.network.named_parameters()
            faults += [f"{name}: {n}" for n, p in parameters if not torch.equal(p, expected[n])]
    return faults


def _load_as_transformer_engine(network: torch.nn.Module, folder: Path) -> None:
    """Load with megatron-core's defaults; the norms keep extra state, as TransformerEngine's do."""
    from megatron.core import dist_checkpointing

    for name, module in network.named_modules():
        if name.endswith(("q_layernorm", "k_layernorm", "final_layernorm")) and list(module.parameters()):
            methods = {"get_extra_state": lambda _: torch.empty(0), "set_extra_state": lambda _, state: None}
            module.__class__ = type("Norm", (type(module),), methods)
    state = network.sharded_state_dict()
    asked = [key for key in state if key.endswith("_extra_state")]
    assert any("linear_qkv" in key for key in asked)
    loaded = dist_checkpointing.load({"model": state}, str(folder))
    assert loaded["iteration"] == 7
    assert loaded["content_metadata"]["singleton_local_shards"] is False
    missing, unexpected = network.load_state_dict(loaded["model"], strict=False)
    assert not unexpected and not [key for key in missing if "output_layer" not in key]


def test_objects_of_both_layer_specs_are_there() -> None:
    config = small_config("Qwen3ForCausalLM", num_layers=1)
    index = plan_chunks(config, dict.fromkeys(weight_map(config).hf, "BF16"), Path("x"))
    modules = ["core_attention", "linear_qkv", "q_layernorm", "k_layernorm", "linear_proj"]
    layer = [f"self_attention.{module}" for module in modules] + ["mlp.linear_fc1", "mlp.linear_fc2"]
    assert sorted(index.items) == sorted(
        [f"decoder.layers.{module}._extra_state/shard_0_1" for module in layer]
        + ["decoder.final_layernorm._extra_state/shard_0_1"]
    )


def test_chunks_follow_the_ranks() -> None:
    config = small_config("Qwen2ForCausalLM", vocab_size=1100)
    dtypes = dict.fromkeys(weight_map(config).hf, "F32")
    index = plan_chunks(config, dtypes, Path("x"), chunk_tp=2, max_chunk_bytes=200 * 32 * 4)

    def boxes(key: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        return [(chunk.start, chunk.shape) for chunk in index.tensors[key].chunks]

    fc1 = boxes("decoder.layers.mlp.linear_fc1.weight")
    assert fc1[:4] == [((0, first, 0), (1, 24, 32)) for first in (0, 24, 48, 72)]
    proj = boxes("decoder.layers.self_attention.linear_proj.weight")
    assert proj[2:] == [((1, 0, 0), (1, 32, 16)), ((1, 0, 16), (1, 32, 16))]
    assert boxes("decoder.layers.self_attention.linear_qkv.layer_norm_weight")[1] == ((1, 0), (1, 32))
    rows = [(start[0], shape[0]) for start, shape in boxes("output_layer.weight")]
    # TP 2 begins at row 640, TP 4 at every 384th, TP 8 at every 256th; none above 200 rows.
    assert {0, 256, 384, 512, 640, 768, 1024} <= {first for first, _ in rows}
    assert max(count for _, count in rows) <= 200
    assert [first + count for first, count in rows] == [first for first, _ in rows[1:]] + [1100]


def test_files_and_payloads_keep_their_limits() -> None:
    config = small_config("LlamaForCausalLM", num_layers=3)
    index = plan_chunks(config, dict.fromkeys(weight_map(config).hf, "F32"), Path("x"), max_file_bytes=30_000)
    sizes = file_sizes(index)
    assert list(sizes) == [f"__{n}_0.distcp" for n in range(len(sizes))]
    assert len(sizes) > 3 and max(sizes.values()) <= 30_000
    chunks = [chunk for tensor in index.tensors.values() for chunk in tensor.chunks]
    assert all(chunk.payload % 64 == 0 for chunk in chunks)


def test_types_that_do_not_go_together_are_named() -> None:
    config = small_config("Qwen2ForCausalLM")
    dtypes = dict.fromkeys(weight_map(config).hf, "BF16") | {"model.norm.weight": "F32"}
    assert plan_chunks(config, dtypes, Path("x")).tensors["decoder.final_layernorm.weight"].dtype == "F32"
    odd = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=rf"{odd} is F16.*linear_fc1.weight.*--dtype bf16"):
        plan_chunks(config, dtypes | {odd: "F16"}, Path("x"))
    del dtypes[odd]
    with pytest.raises(CheckpointError, match=odd):
        plan_chunks(config, dtypes, Path("x"))


def test_a_tensor_parallel_size_that_does_not_divide_is_refused() -> None:
    config = small_config("Qwen2ForCausalLM")
    with pytest.raises(CheckpointError, match="cannot be split over"):
        plan_chunks(config, dict.fromkeys(weight_map(config).hf, "BF16"), Path("x"), chunk_tp=5)
