"""Checkpoint keys and chunks against a model's config: any grid is put together, anything odd is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import repeatable
from support.extents import assemble
from support.models import small_config
from torch import Tensor

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.megatron_model import model_layouts
from checkpoints_tools.torch_dist.index import Chunk, DistIndex, DistTensor
from checkpoints_tools.weight_map import box_slice, weight_map

CONFIG = small_config("Qwen2ForCausalLM", num_layers=3, vocab_size=50)
Cuts = Callable[[int], list[int]]


def whole(_: int) -> list[int]:
    return []


class Writer:
    """A checkpoint as a file of raw elements and an index; the values are random."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tensors, self._at = folder, {}, 0
        self._generator = torch.Generator().manual_seed(1)

    def add(self, key: str, shape: tuple[int, ...], cuts: Cuts = whole, dtype: str = "F32") -> Tensor:
        """Store a tensor, cut on every axis where `cuts` says."""
        values = torch.randn(shape, generator=self._generator)
        boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
        for n in shape:
            edges = [0, *cuts(n), n]
            parts = list(zip(edges, (b - a for a, b in pairwise(edges)), strict=False))
            boxes = [((*start, a), (*size, b)) for start, size in boxes for a, b in parts]
        chunks = []
        with open(self.folder / "shard", "ab") as stream:
            for start, size in boxes:
                data = values[box_slice(start, size)].contiguous().numpy().tobytes()
                chunks.append(Chunk(start, size, "shard", self._at, len(data), self._at))
                self._at += stream.write(data)
        self.tensors[key] = DistTensor(key, dtype, shape, tuple(chunks))
        return values

    @property
    def index(self) -> DistIndex:
        return DistIndex(self.folder, self.tensors, {})


def write(folder: Path, *, per_layer: bool = False, cuts: Cuts = whole, padded: int = 64) -> DistIndex:
    """All of the model's tensors; the vocabulary is padded."""
    writer = Writer(folder)
    for name, tensor in weight_map(CONFIG).megatron.items():
        layer, rest = name.removeprefix("decoder.layers.").partition(".")[::2]
        if not name.startswith("decoder.layers."):
            writer.add(name, (padded, *tensor.shape[1:]) if tensor.vocab else tensor.shape, cuts)
        elif per_layer and tensor.tp_blocks == 2:
            for half in "wv":
                writer.add(f"{name}_{half}", (tensor.shape[0] // 2, *tensor.shape[1:]), cuts)
        elif per_layer:
            writer.add(name, tensor.shape, cuts)
        elif layer == "0":
            writer.add(f"decoder.layers.{rest}", (CONFIG.num_layers, *tensor.shape), cuts)
    return writer.index


def expected(index: DistIndex) -> dict[str, Tensor]:
    """The Hugging Face tensors, from the elements of the whole Megatron tensors."""
    stored = {key: _joined(index.folder, tensor) for key, tensor in index.tensors.items()}
    table, out = weight_map(CONFIG), {}
    for name in table.megatron:
        layer, rest = name.removeprefix("decoder.layers.").partition(".")[::2]
        if name in stored:
            value = stored[name]
        elif f"{name}_w" in stored:
            value = torch.cat([stored[f"{name}_w"], stored[f"{name}_v"]])
        else:
            value = stored[f"decoder.layers.{rest}"][int(layer)]
        for copy in table.copies[name]:
            target = out.setdefault(copy.hf_name, torch.full(table.hf[copy.hf_name], torch.nan))
            target[box_slice(copy.hf_start, copy.shape)] = value[box_slice(copy.megatron_start, copy.shape)]
    return out


def _joined(folder: Path, tensor: DistTensor) -> Tensor:
    raw = torch.from_file(str(folder / "shard"), size=(folder / "shard").stat().st_size // 4)
    out = torch.full(tensor.shape, torch.nan)
    for chunk in tensor.chunks:
        values = raw[chunk.payload // 4 : chunk.payload // 4 + torch.Size(chunk.shape).numel()]
        out[box_slice(chunk.start, chunk.shape)] = values.reshape(chunk.shape)
    return out


@repeatable(25)
@given(data=st.data(), per_layer=st.booleans())
def test_any_grid_of_chunks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, per_layer: bool
) -> None:
    def cuts(n: int) -> list[int]:
        return sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=2))) if n > 1 else []

    index = write(tmp_path_factory.mktemp("grid"), per_layer=per_layer, cuts=cuts)
    layouts = model_layouts(index, CONFIG)
    assert list(layouts) == list(weight_map(CONFIG).hf)
    for name, tensor in expected(index).items():
        assert torch.equal(assemble({name: layouts[name]})[name], tensor), name


QKV, FC1, FC2 = (f"decoder.layers.{n}" for n in (
    "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"
))  # fmt: skip
EMBEDDING, NORM, OUTPUT = (
    "embedding.word_embeddings.weight",
    "decoder.final_layernorm.weight",
    "output_layer.weight",
)


def refused(index: DistIndex, config: Any = CONFIG) -> str:
    with pytest.raises(CheckpointError) as caught:
        model_layouts(index, config)
    return str(caught.value)


@pytest.mark.parametrize("key", [EMBEDDING, NORM, OUTPUT, QKV])
def test_a_missing_tensor(tmp_path: Path, key: str) -> None:
    index = write(tmp_path)
    del index.tensors[key]
    message = refused(index)
    assert key.replace("layers.", "layers.0." if key == QKV else "layers.") + " is missing" in message
    assert ("tie_word_embeddings" in message) == (key == OUTPUT)


def test_a_missing_or_extra_layer(tmp_path: Path) -> None:
    index = write(tmp_path, per_layer=True)
    key = "decoder.layers.2.mlp.linear_fc2.weight"
    dropped = {k: v for k, v in index.tensors.items() if k != key}
    assert f"{key} is missing" in refused(replace(index, tensors=dropped))
    assert "decoder.layers.2.mlp.linear_fc1.weight_w is stored, but num_hidden_layers is 2" in refused(
        index, replace(CONFIG, num_layers=2)
    )
    (tmp_path / "stacked").mkdir()
    assert f"{QKV} holds 3 layers, num_hidden_layers is 4" in refused(
        write(tmp_path / "stacked"), replace(CONFIG, num_layers=4)
    )


def test_an_unknown_key(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for key in ("decoder.layers.mlp.router.weight", "decoder.layers.1.mlp.router.weight", "vision.weight"):
        writer.add(key, (3, 4))
        assert f"{key} is no weight of this architecture" in refused(writer.index)
        writer.tensors.clear()
    index = write(tmp_path)
    qwen3 = replace(CONFIG, architecture="Qwen3ForCausalLM", qk_norm=True, qkv_bias=False)
    assert "linear_qkv.bias is no weight of this architecture" in refused(index, qwen3)
    index.tensors["optimizer.state.exp_avg.x"] = replace(index.tensors[NORM], key="optimizer.state.exp_avg.x")
    assert model_layouts(index, CONFIG)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"hidden_size": 40}, "hidden_size"),
        ({"ffn": 56}, "intermediate_size"),
        ({"num_kv_heads": 1}, "num_key_value_heads"),
        ({"vocab_size": 65}, "has 64 rows, fewer than vocab_size 65"),
    ],
)
def test_a_wrong_shape_names_the_field(tmp_path: Path, change: dict[str, int], fields: str) -> None:
    for per_layer in (False, True):
        folder = tmp_path / str(per_layer)
        folder.mkdir()
        assert fields in refused(write(folder, per_layer=per_layer), replace(CONFIG, **change))


def test_other_ranks_of_tensor(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.add(NORM, (32, 1))
    writer.add(QKV, ())
    assert f"{NORM} has shape (32, 1)" in refused(writer.index)
    assert f"{QKV} holds 0 layers" in refused(writer.index)


def halves(n: int) -> list[int]:
    return [n // 2] if n > 1 else []


@pytest.mark.parametrize("per_layer", [False, True])
def test_holes_and_overlaps_between_shards(tmp_path: Path, per_layer: bool) -> None:
    index = write(tmp_path, per_layer=per_layer, cuts=halves)
    for key, tensor in index.tensors.items():
        first, *rest = tensor.chunks
        hole = {**index.tensors, key: replace(tensor, chunks=tuple(rest))}
        message = refused(replace(index, tensors=hole))
        assert key in message
        assert "boxes cover" in message
        twice = {**index.tensors, key: replace(tensor, chunks=(first, *tensor.chunks))}
        message = refused(replace(index, tensors=twice))
        assert key in message
        assert "overlap" in message
        moved = replace(first, start=(tensor.shape[0], *first.start[1:]))
        outside = {**index.tensors, key: replace(tensor, chunks=(moved, *rest))}
        assert key in refused(replace(index, tensors=outside))


def test_padding_must_be_whole_too(tmp_path: Path) -> None:
    index = write(tmp_path, cuts=lambda n: [56] if n == 64 else [])
    tensor = index.tensors[EMBEDDING]
    layouts = model_layouts(index, CONFIG)
    assert sum(e.rows for e in layouts["model.embed_tokens.weight"].extents) == CONFIG.vocab_size
    index.tensors[EMBEDDING] = replace(tensor, chunks=tensor.chunks[:1])
    assert EMBEDDING in refused(index)


def test_tied_with_an_output_layer(tmp_path: Path) -> None:
    index = write(tmp_path)
    tied = replace(CONFIG, tied=True)
    assert "tie_word_embeddings" in refused(index, tied)
    del index.tensors[OUTPUT]
    assert "lm_head.weight" not in model_layouts(index, tied)


def test_a_tensor_stored_in_two_ways(tmp_path: Path) -> None:
    index = write(tmp_path)
    (tmp_path / "b").mkdir()
    other = write(tmp_path / "b", per_layer=True)
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    index.tensors[name] = other.tensors[name]
    assert f"{name} is stored more than once: decoder.layers.1.mlp.linear_fc2.weight and {FC2}" in refused(
        index
    )
    half = "decoder.layers.1.mlp.linear_fc1.weight_v"
    del index.tensors[name]
    index.tensors[half] = other.tensors[half]
    assert f"more than once: {half} and {FC1}" in refused(index)
    del other.tensors[half]
    assert f"stored by one half only: {half[:-1]}w" in refused(other)


def test_types(tmp_path: Path) -> None:
    index = write(tmp_path, per_layer=True)
    gate = "decoder.layers.0.mlp.linear_fc1.weight_w"
    index.tensors[gate] = replace(index.tensors[gate], dtype="BF16")
    assert "decoder.layers.0.mlp.linear_fc1.weight has mixed dtypes, BF16 and F32" in refused(index)
    index.tensors[gate] = replace(index.tensors[gate], dtype="I64")
    assert f"{gate} is stored as I64" in refused(index)


def test_bytes_that_were_not_located(tmp_path: Path) -> None:
    index = write(tmp_path)
    tensor = index.tensors[NORM]
    index.tensors[NORM] = replace(tensor, chunks=(replace(tensor.chunks[0], payload=-1),))
    assert f"{NORM}: its bytes were not located" in refused(index)


def test_many_faults_are_counted_not_listed(tmp_path: Path) -> None:
    index = write(tmp_path, per_layer=True)
    index.tensors.clear()
    assert "(and 14 more)" in refused(index)
