"""Real megatron-core saves with their model cut anew: all else is carried over, and Megatron reads on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import Save, Saves, assert_same, dcp_tensors, reference_hf
from support.models import small_config
from support.ranks import run_ranks
from support.write_torch_dist import write_files
from torch import Tensor

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.megatron_model import model_layouts
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.torch_dist.index import DistIndex
from checkpoints_tools.torch_dist.plan_chunks import plan_reshard
from checkpoints_tools.torch_dist.read import read_index
from checkpoints_tools.torch_dist.write import CONTENT_METADATA, METADATA_FILE, write_metadata

QWEN2 = small_config("Qwen2ForCausalLM", vocab_size=200)
TIED = small_config("LlamaForCausalLM", tied=True, vocab_size=200)
CASES = [
    (QWEN2, Save(tp=2, optimizer="adam")),
    (QWEN2, Save(dp=2, per_layer=True, optimizer="distributed")),
    (TIED, Save(common_state=True)),
]


def _reshard(source: Path, config: ModelConfig, folder: Path) -> tuple[DistIndex, DistIndex]:
    """Execute a plan with plain file operations; the index of the source and of the result."""
    index = read_index(source)
    planned = plan_reshard(index, config, folder, chunk_tp=2, max_chunk_bytes=4000, max_file_bytes=50_000)
    folder.mkdir()
    write_files(planned.model, dcp_tensors(source))
    for copy in planned.copies:
        content = copy.source.read_bytes()[copy.source_offset : copy.source_offset + copy.nbytes]
        copy.destination.touch()
        with open(copy.destination, "r+b") as stream:
            stream.seek(copy.offset)
            stream.write(content)
    (folder / METADATA_FILE).write_bytes(write_metadata(planned.index))
    for name in ("common.pt", "metadata.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder)
    return index, planned.index


@pytest.mark.parametrize(("config", "save"), CASES)
def test_all_that_was_there_is_there(saves: Saves, tmp_path: Path, config: ModelConfig, save: Save) -> None:
    source, folder = saves(config, save), tmp_path / "out"
    before, after = _reshard(source, config, folder)
    assert read_index(folder) == after
    assert model_layouts(after, config).keys() == model_layouts(before, config).keys()
    expected = dcp_tensors(source)
    for key in expected.keys() & {"embedding.word_embeddings.weight", "output_layer.weight"}:
        assert len(expected[key]) > config.vocab_size
        expected[key] = expected[key][: config.vocab_size]
    assert_same(dcp_tensors(folder), expected)
    assert_same(reference_hf(folder, config), reference_hf(source, config))
    assert _objects(after) == _objects(before) != {}
    if save.common_state:
        assert any("common_state" in key for key in after.items)


def _objects(index: DistIndex) -> dict[str, bytes]:
    return {
        key: (index.folder / item.file).read_bytes()[item.record : item.record + item.record_bytes]
        for key, item in index.items.items()
    }


@pytest.mark.parametrize(("config", "save"), CASES[:2])
def test_training_goes_on_from_either(saves: Saves, tmp_path: Path, config: ModelConfig, save: Save) -> None:
    source = saves(config, save)
    _reshard(source, config, tmp_path / "out")
    folders = [source, tmp_path / "out"]
    for compared, different in run_ranks(_differences, saves.source(config), folders, save, world=2, tp=2):
        assert compared > 40 and different == []


def _differences(layout: Any, source: Path, folders: list[Path], save: Save) -> tuple[int, list[str]]:
    from megatron.core import dist_checkpointing
    from support.checkpoints import _policy, _state

    from nemo_thinkprune.policy.checkpoint import _allocate_moments

    states = []
    for folder in folders:
        policy = _policy(layout, source, save)
        for parameter in policy.network.parameters():
            parameter.data.fill_(7)
        _allocate_moments(policy.optimizer)
        state = _state(policy, CONTENT_METADATA | {"singleton_local_shards": save.per_layer})
        states.append(dict(_tensors("", dist_checkpointing.load(state, str(folder)))))
    one, other = states
    assert one.keys() == other.keys()
    return len(one), [name for name in one if not torch.equal(one[name], other[name])]


def _tensors(name: str, value: Any) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(name, value)]
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [found for key, child in children for found in _tensors(f"{name}.{key}", child)]


def test_a_key_of_another_model_is_named(saves: Saves) -> None:
    index = read_index(saves(QWEN2, CASES[0][1]))
    other = small_config("LlamaForCausalLM", vocab_size=200)
    with pytest.raises(CheckpointError, match=r"linear_qkv\.bias is not a tensor of the model"):
        plan_reshard(index, other, Path("x"))
