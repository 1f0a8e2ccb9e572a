"""Bytes that two tensors of a checkpoint claim, and grids of very many chunks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import MODELS

from checkpoints_tools.convert import export_model, import_model
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.models import open_checkpoint
from checkpoints_tools.proof.inspection import inspect
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.torch_dist.index import DistIndex
from checkpoints_tools.torch_dist.read import read_index
from checkpoints_tools.torch_dist.write import write_metadata
from checkpoints_tools.weight_map.geometry import intersect, tiling_fault

FC2 = "decoder.layers.mlp.linear_fc2.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("claims")
    random_hf_init(MODELS["qwen2"], root / "hf", seed=3, randomize_all=True)
    import_model(root / "hf", root / "mg", verify=False)
    return root / "mg"


def _another_layers_record(index: DistIndex) -> None:
    tensor = index.tensors[FC2]
    first, second = tensor.chunks
    where = {"file": first.file, "record": first.record, "record_bytes": first.record_bytes}
    index.tensors[FC2] = replace(tensor, chunks=(first, replace(second, **where)))


def _a_record_in_an_objects_bytes(index: DistIndex) -> None:
    key, item = next(iter(index.items.items()))
    chunk = index.tensors[FC2].chunks[0]
    index.items[key] = replace(item, file=chunk.file, record=chunk.record + 8)


@pytest.mark.parametrize("claim", [_another_layers_record, _a_record_in_an_objects_bytes])
def test_a_record_claimed_twice_is_refused(
    checkpoint: Path, tmp_path: Path, claim: Callable[[DistIndex], None]
) -> None:
    shutil.copytree(checkpoint, tmp_path / "mg")
    folder = tmp_path / "mg/iter_0000000"
    index = read_index(folder)
    claim(index)
    (folder / ".metadata").write_bytes(write_metadata(index))
    with pytest.raises(CheckpointError, match=r"more than one record, of .*linear_fc2\.weight at"):
        export_model(tmp_path / "mg", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_object_under_a_weights_name_is_not_passed_over(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "mg")
    folder = tmp_path / "mg/iter_0000000"
    index = read_index(folder)
    key = next(iter(index.items))
    for other in ("decoder.layers.0.weird", "dataloader_state/rank_0"):
        index.items[other] = replace(index.items.pop(key), key=other)
        key = other
        (folder / ".metadata").write_bytes(write_metadata(index))
        if other.startswith("decoder"):
            with pytest.raises(CheckpointError, match=r"decoder\.layers\.0\.weird is an object"):
                open_checkpoint(tmp_path / "mg")
            assert any("weird" in problem for problem in inspect(tmp_path / "mg").problems)
    open_checkpoint(tmp_path / "mg")


@pytest.mark.parametrize("columns", [True, False])
def test_a_tensor_in_very_many_pieces_is_checked_in_little_time(columns: bool) -> None:
    """Comparing all pairs would take hours."""
    count = 100_000
    boxes = [((0, n), (7, 1)) if columns else ((n, 0), (1, 7)) for n in range(count)]
    shape = (7, count) if columns else (count, 7)
    assert tiling_fault(shape, boxes) is None
    assert "overlap" in (tiling_fault(shape, [*boxes[:-1], boxes[3]]) or "")


BOXES = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 4), st.integers(0, 4)), st.tuples(st.integers(1, 5), st.integers(1, 5))
    ),
    max_size=6,
)


@given(BOXES)
def test_an_overlap_is_found_wherever_it_is(boxes: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    pairs = [(a, b) for n, a in enumerate(boxes) for b in boxes[:n]]
    overlap = any(intersect(*a, *b) for a, b in pairs)
    assert ("overlap" in (tiling_fault((9, 9), boxes) or "")) == overlap
