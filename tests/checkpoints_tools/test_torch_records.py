"""Pickles, records and small files against what Python and torch themselves write."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import small_config
from support.write_torch_dist import raw_bytes
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.index import DistIndex
from checkpoints_tools.torch_dist.pickle_out import Call, Global, New, pickled
from checkpoints_tools.torch_dist.plan_chunks import file_sizes, plan_chunks
from checkpoints_tools.torch_dist.record_write import object_record, tensor_record
from checkpoints_tools.torch_dist.safe_pickle import check_pickle
from checkpoints_tools.torch_dist.write import common_pt, finish_records, metadata_json, write_metadata
from checkpoints_tools.weight_map import weight_map

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_plain_values_come_back(value: object) -> None:
    assert pickle.loads(pickled(value)) == value  # type: ignore[arg-type]


def test_bytes_are_those_of_the_standard_library() -> None:
    limits = [0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -1, -(2**31), -(2**31) - 1, 2**63, -(2**63)]
    value = [None, True, False, 1.5, "a", "é", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [7], {}, {1: 2}]
    value += [limits, list(range(2001)), {n: str(n) for n in range(1001)}]
    assert pickled(value) == pickle.dumps(value, 2)  # type: ignore[arg-type]


def test_a_named_object_opcode_by_opcode() -> None:
    size = Call(Global("torch", "Size"), ((2, 3),))
    data = pickled([New(Global("m", "C"), {"a": size}), "a"])
    steps = [(op.name, argument) for op, argument, _ in pickletools.genops(data)]
    assert steps == [
        ("PROTO", 2), ("EMPTY_LIST", None), ("BINPUT", 0), ("MARK", None),
        ("GLOBAL", "m C"), ("BINPUT", 1), ("EMPTY_TUPLE", None), ("NEWOBJ", None), ("BINPUT", 2),
        ("EMPTY_DICT", None), ("BINPUT", 3), ("BINUNICODE", "a"), ("BINPUT", 4),
        ("GLOBAL", "torch Size"), ("BINPUT", 5), ("BININT1", 2), ("BININT1", 3), ("TUPLE2", None),
        ("BINPUT", 6), ("TUPLE1", None), ("BINPUT", 7), ("REDUCE", None), ("BINPUT", 8), ("SETITEM", None),
        ("BUILD", None), ("BINGET", 4), ("APPENDS", None), ("STOP", None),
    ]  # fmt: skip


TENSORS = [
    ((1, 32), torch.float32, "F32"),
    ((2, 300, 70), torch.bfloat16, "BF16"),
    ((), torch.float32, "F32"),
    ((70_000,), torch.uint8, "U8"),
    ((1, 1, 1), torch.float16, "F16"),
    ((5, 1, 3), torch.int64, "I64"),
    ((9,), torch.bool, "BOOL"),
    ((3, 3), torch.float64, "F64"),
    ((4,), torch.int32, "I32"),
    ((4,), torch.int16, "I16"),
    ((4,), torch.int8, "I8"),
]


@pytest.mark.parametrize(("shape", "dtype", "name"), TENSORS)
def test_records_are_torch_saves_to_the_byte(shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    tensor = (100 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).to(dtype)
    content = raw_bytes(tensor)
    head, tail = tensor_record(shape, name, zlib.crc32(content))
    expected = io.BytesIO()
    torch.save(tensor, expected)
    assert head + content + tail == expected.getvalue()
    assert len(head) % 64 == 0
    assert (len(head), len(tail)) == tuple(map(len, tensor_record(shape, name)))


def test_objects_are_torch_saves_to_the_byte(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save([None], stream)
    assert object_record([None]) == stream.getvalue()
    state = {"iteration": 3, "content_metadata": {"x": False}, "betas": (0.9, 0.999)}
    torch.save(state, tmp_path / "common.pt")
    assert object_record(state, folder="common") == (tmp_path / "common.pt").read_bytes()  # type: ignore[arg-type]


def test_a_type_without_a_storage_class_is_refused() -> None:
    with pytest.raises(CheckpointError, match="F8_E4M3 cannot be written"):
        tensor_record((2,), "F8_E4M3")


def _large_record(folder: Path, nbytes: int) -> tuple[Path, int]:
    head, tail = tensor_record((2, nbytes // 4), "BF16", _crc_of_zeros(nbytes))
    file = folder / "record"
    with open(file, "wb") as stream:
        stream.write(head)
        stream.seek(len(head) + nbytes)
        stream.write(tail)
    return file, len(head)


def _crc_of_zeros(nbytes: int) -> int:
    block, crc32 = bytes(1 << 24), 0
    for left in range(nbytes, 0, -len(block)):
        crc32 = zlib.crc32(block[:left], crc32)
    return crc32


@pytest.mark.parametrize("nbytes", [2**32 - 8, 2**32 + 8])
def test_more_than_four_gib_is_zip64(tmp_path: Path, nbytes: int) -> None:
    """A sparse file: below the limit only the members after the payload lie beyond it."""
    file, payload = _large_record(tmp_path, nbytes)
    with open(file, "r+b") as stream:
        stream.seek(payload + nbytes - 2)
        stream.write(b"\x80\x3f")  # 1.0; the CRC is checked by neither reader below
    tensor = torch.load(file, mmap=True, weights_only=True)
    assert tensor.shape == (2, nbytes // 4) and tensor.dtype == torch.bfloat16
    assert tensor[1, -1] == 1 and tensor[0, -1] == 0
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo("archive/data/0")
        assert (entry.file_size, entry.compress_type) == (nbytes, zipfile.ZIP_STORED)
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/.format_version") == b"1"


class _Frame:
    """A stream that keeps what torch.save writes around a large payload."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: memoryview) -> int:
        size = memoryview(data).nbytes
        if size < 1 << 20:
            self.parts.append(bytes(data))
        return size

    def flush(self) -> None:
        pass


def test_a_zip64_record_is_torch_saves_to_the_byte() -> None:
    nbytes = 2**32 + 64
    frame = _Frame()
    torch.save(torch.from_numpy(np.zeros(nbytes, np.uint8)), frame)  # untouched pages take no memory
    assert b"".join(tensor_record((nbytes,), "U8", _crc_of_zeros(nbytes))) == b"".join(frame.parts)


def _planned(folder: Path) -> DistIndex:
    config = small_config("Qwen3ForCausalLM", tied=True)
    dtypes = dict.fromkeys(weight_map(config).hf, "BF16") | {"model.norm.weight": "F32"}
    return plan_chunks(config, dtypes, folder, chunk_tp=2, max_file_bytes=20_000)


def _as_torch(index: DistIndex) -> Metadata:
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places = {}
    for key, tensor in index.tensors.items():
        dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[tensor.dtype]
        chunks = [ChunkStorageMetadata(torch.Size(c.start), torch.Size(c.shape)) for c in tensor.chunks]
        described[key] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(tensor.shape), chunks)
        for c in tensor.chunks:
            places[MetadataIndex(key, c.start)] = _StorageInfo(c.file, c.record, c.record_bytes)
    for key, item in index.items.items():
        described[key] = BytesStorageMetadata()
        places[MetadataIndex(key)] = _StorageInfo(item.file, item.record, item.record_bytes)
    return Metadata(described, None, places, StorageMeta(), "1.0.0")


def test_metadata_is_what_torch_would_say() -> None:
    index = _planned(Path("x"))
    data = write_metadata(index)
    check_pickle(data, name=".metadata")
    metadata = pickle.loads(data)
    assert metadata == _as_torch(index)
    keys = list(metadata.storage_data)
    assert all(isinstance(size, torch.Size) for key in keys for size in [key.offset or torch.Size([0])])
    assert all("offset" not in vars(key) for key in keys if "_extra_state" in key.fqn)
    assert write_metadata(index) == data


def test_finished_records_are_whole_archives(tmp_path: Path) -> None:
    index = _planned(tmp_path)
    for file, nbytes in file_sizes(index).items():
        (tmp_path / file).write_bytes(bytes(nbytes))
    chunks = [(tensor, chunk) for tensor in index.tensors.values() for chunk in tensor.chunks]
    checksums = {}
    for tensor, chunk in chunks:
        tail = len(tensor_record(chunk.shape, tensor.dtype)[1])
        checksums[chunk.file, chunk.payload] = zlib.crc32(
            bytes(chunk.record + chunk.record_bytes - tail - chunk.payload)
        )
    finish_records(index, checksums, tmp_path)
    for record in [*(chunk for _, chunk in chunks), *index.items.values()]:
        with open(tmp_path / record.file, "rb") as stream:
            stream.seek(record.record)
            content = stream.read(record.record_bytes)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
        value = torch.load(io.BytesIO(content), weights_only=True)
        assert value == [None] or not value.any()
    missing = checksums.popitem()[0]
    with pytest.raises(CheckpointError, match="was not written"):
        finish_records(index, checksums, tmp_path)
    assert missing not in checksums


def test_common_state_loads_with_weights_only() -> None:
    state = torch.load(io.BytesIO(common_pt(iteration=12, more={"consumed": [1]})), weights_only=True)
    assert (state["iteration"], state["checkpoint_version"], state["consumed"]) == (12, 3.0, [1])
    assert state["content_metadata"]["singleton_local_shards"] is False


def test_config_is_megatrons_own(tmp_path: Path) -> None:
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, maybe_load_config, save_config

    (tmp_path / "metadata.json").write_bytes(metadata_json())
    assert maybe_load_config(str(tmp_path)) == CheckpointingConfig("torch_dist")
    (tmp_path / "real").mkdir()
    save_config(CheckpointingConfig("torch_dist"), str(tmp_path / "real"))
    assert json.loads((tmp_path / "real" / "metadata.json").read_bytes()) == json.loads(metadata_json())
