"""Digests: worked out by hand from the elements, and the same whatever holds the model."""

import hashlib
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.checkpoints import hf_tensors
from support.emulated_saves import emulate_save
from support.models import MODELS, small_config

from checkpoints_tools.copying.reading import read_rows
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import Extent, TensorLayout
from checkpoints_tools.models import open_model
from checkpoints_tools.proof.digest import digest_model
from checkpoints_tools.proof.manifest import model_digest
from checkpoints_tools.random_init import random_hf_init

NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}


def by_hand(tensors, dtype=None):
    """{name: (dtype, shape, sha256)} with torch's bytes and conversions."""
    expected = {}
    for name, tensor in tensors.items():
        stored = tensor.to(dtype or tensor.dtype).contiguous()
        data = stored.view(torch.uint8).numpy().tobytes()
        expected[name] = (NAMES[stored.dtype], tuple(stored.shape), hashlib.sha256(data).hexdigest())
    return expected


def plain(digests):
    return {name: (d.dtype, d.shape, d.sha256) for name, d in digests.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("digests")
    for name, config in MODELS.items():
        random_hf_init(config, root / name, 5, randomize_all=True, max_shard_bytes=20_000)
    return root


@pytest.mark.parametrize("name", MODELS)
def test_digests_of_a_sharded_folder_are_those_of_its_elements(folders, name):
    model = open_model(folders / name)
    seen = []
    digests = digest_model(model, threads=3, on_bytes=seen.append)
    assert plain(digests) == by_hand(hf_tensors(folders / name))
    assert list(digests) == list(model.tensors)
    assert sum(seen) == sum(t.nbytes for t in model.tensors.values())


@pytest.mark.parametrize(("as_dtype", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
@pytest.mark.parametrize("name", MODELS)
def test_digests_after_conversion_are_those_of_converted_elements(folders, name, as_dtype, dtype):
    digests = digest_model(open_model(folders / name), as_dtype=as_dtype)
    assert plain(digests) == by_hand(hf_tensors(folders / name), dtype)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(("tp", "stages"), [(1, ()), (2, (1, 1))])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_model_has_one_digest_in_every_format_and_layout(
    folders, tmp_path, name, tp, stages, per_layer
):
    tensors = hf_tensors(folders / name)
    one_file = tmp_path / "one"
    one_file.mkdir()
    save_file(dict(reversed(tensors.items())), one_file / "model.safetensors")
    (one_file / "config.json").write_bytes((folders / name / "config.json").read_bytes())
    saved = tmp_path / "saved"
    emulate_save(tensors, MODELS[name], saved, tp=tp, stages=stages, per_layer=per_layer)
    models = [
        open_model(folders / name),
        open_model(one_file),
        open_model(saved, base=folders / name),
    ]
    digests = [digest_model(model) for model in models]
    assert digests[0] == digests[1] == digests[2]
    assert len({model_digest(d) for d in digests}) == 1


def test_a_file_that_shrinks_while_it_is_read_is_an_error_that_names_file_and_tensor(tmp_path):
    config = small_config("Qwen2ForCausalLM")
    random_hf_init(config, tmp_path / "m", 1)
    model = open_model(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    last = max(model.tensors.values(), key=lambda t: t.extents[0].offset)
    with open(file, "r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    with pytest.raises(CheckpointError) as caught:
        digest_model(model)
    assert str(file) in str(caught.value) and last.name in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_are_read_whatever_the_extents(tmp_path_factory, data):
    rows, columns = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    values = torch.arange(rows * columns, dtype=torch.int16).reshape(rows, columns)
    row_edges = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=2))})
    column_edges = sorted({0, columns, *data.draw(st.lists(st.integers(0, columns), max_size=2))})
    file = tmp_path_factory.mktemp("rows") / "f"
    extents, content = [], b""
    for top, end in pairwise(row_edges):
        for left, right in pairwise(column_edges):
            extents.append(Extent(file, len(content), top, left, end - top, right - left))
            content += values[top:end, left:right].contiguous().numpy().tobytes()
    file.write_bytes(content)
    tensor = TensorLayout("t", "BF16", (rows, columns), tuple(data.draw(st.permutations(extents))))
    read = b"".join(band.tobytes() for band in read_rows(tensor))
    assert read == values.numpy().tobytes() and prod(tensor.matrix) == values.numel()
    wide = b"".join(band.tobytes() for band in read_rows(tensor, "F32"))
    assert wide == values.view(torch.bfloat16).float().numpy().tobytes()
