"""Crafted and damaged `.metadata` files: a clear error, no side effect, within bounds of memory and time."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import hf_tensors
from support.emulated_saves import emulate_save
from support.models import small_config
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.torch_dist import child
from checkpoints_tools.torch_dist.read import read_index

CONFIG = small_config("Qwen2ForCausalLM", vocab_size=40)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original")
    random_hf_init(CONFIG, root / "hf", 1)
    emulate_save(hf_tensors(root / "hf"), CONFIG, root / "save", tp=2)
    return root / "save"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A small whole checkpoint."""
    return shutil.copytree(original, tmp_path / "save")


def refused(folder: Path, data: bytes) -> str:
    (folder / ".metadata").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_index(folder)
    return str(caught.value)


def metadata(folder: Path) -> Metadata:
    return pickle.loads((folder / ".metadata").read_bytes())


class Touch:
    """Unpickles into a shell command that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def test_the_subclasses_of_megatron_core_015_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 0.15 Megatron saved its own Metadata and SavePlan, each with shapes of tensors in `mcore_data`."""
    from megatron.core.dist_checkpointing.strategies import torch as strategy

    expected, content = read_index(folder), metadata(folder)
    key = next(iter(expected.tensors))
    shapes = {key: {"nd_reformulated_orig_global_shape": torch.Size((4, 2))}}
    more = [("mcore_data", "object", dataclasses.field(default=None))]
    own_metadata: Any = dataclasses.make_dataclass("MCoreMetadata", more, bases=(Metadata,))
    own_plan: Any = dataclasses.make_dataclass("MCoreSavePlan", more, bases=(SavePlan,), frozen=True)
    for made in (own_metadata, own_plan):  # pickle looks them up
        made.__module__ = strategy.__name__
        monkeypatch.setattr(strategy, made.__name__, made)
    saved = own_metadata(**vars(content), mcore_data=shapes)
    saved.all_local_plans = [own_plan(items=[], mcore_data=shapes)]
    data = pickle.dumps(saved)
    assert b"MCoreMetadata" in data and b"MCoreSavePlan" in data and b"mcore_data" in data
    (folder / ".metadata").write_bytes(data)
    assert read_index(folder) == expected


def test_a_command_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    content = metadata(folder)
    content.planner_data = Touch(tmp_path / "trace")
    assert "system, which no checkpoint needs: refused" in refused(folder, pickle.dumps(content))
    assert not (tmp_path / "trace").exists()
    pickle.loads(pickle.dumps(content))
    assert (tmp_path / "trace").exists()  # the command works: it was not run by the reader


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps({"a": 1})[:-3],
        b"\x80\x04K\x01r\x00\x00\x00\x80.",  # LONG_BINPUT 2^31: a memo of 16 GiB
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",  # BINBYTES8 of a tebibyte
        b"\x80\x04\x96" + (1 << 40).to_bytes(8, "little") + b"x.",  # BYTEARRAY8
        b"\x80\x04\x95" + (1 << 62).to_bytes(8, "little") + b"N.",  # FRAME
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04P1\n.",  # a persistent id
        b"\x80\x04" + b"(" * 100_000,
    ],
)
def test_damage_and_bombs(folder: Path, data: bytes) -> None:
    assert "is not a readable pickle" in refused(folder, data) or "there should be none" in refused(
        folder, data
    )


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, (), 3, "x", b"x"])
def test_another_object(folder: Path, value: Any) -> None:
    assert "does not hold torch's Metadata" in refused(folder, pickle.dumps(value))


def test_deep_nesting(folder: Path) -> None:
    assert "does not hold" in refused(folder, b"\x80\x04" + b"]" * 500_000 + b"a" * 499_999 + b".")


def test_colliding_numbers_run_into_the_limit_of_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from checkpoints_tools.torch_dist import read

    prime = 2**61 - 1  # Python's hash of an integer is its remainder
    numbers = b"".join(
        pickle.LONG1 + b"\x0a" + (n * prime).to_bytes(10, "little") + b"N" for n in range(30_000)
    )
    (folder / ".metadata").write_bytes(b"\x80\x02}(" + numbers + b"u.")
    short = read._CODE.replace("; main(", "; main.__globals__['CPU_SECONDS'] = 1; main(")
    assert short != read._CODE
    monkeypatch.setattr(read, "_CODE", short)
    with pytest.raises(CheckpointError, match="more processor time than any checkpoint needs"):
        read_index(folder)


def test_silence_is_ended(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="took more than 0 s"):
        read_index(folder, silence_s=0.0)


def test_memory_runs_into_its_limit(folder: Path) -> None:
    # Entry 2^25 of a memo takes half a gigabyte.
    data = b"\x80\x04" + b"".join(b"K\x01r" + (1 << n).to_bytes(4, "little") for n in range(20, 31)) + b"."
    assert "too much memory" in refused(folder, data)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\nb", 3, None, "x" * 300])
def test_names_that_leave_the_folder(folder: Path, name: Any) -> None:
    content = metadata(folder)
    next(iter(content.storage_data.values())).relative_path = name
    assert "is not the name of a file" in refused(folder, pickle.dumps(content))


@pytest.mark.parametrize("change", [{"offset": -1}, {"length": -5}, {"offset": "0"}, {"offset": 1 << 70}])
def test_impossible_positions(folder: Path, change: dict[str, Any]) -> None:
    content = metadata(folder)
    vars(next(iter(content.storage_data.values()))).update(change)
    assert "malformed position" in refused(folder, pickle.dumps(content))


def test_a_pipe_in_a_files_place(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()
    os.mkfifo(folder / "__0_0.distcp")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_index(folder)
    (folder / ".metadata").unlink()
    os.mkfifo(folder / ".metadata")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_index(folder)


def test_files_missing_and_truncated(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is truncated: it has \d+ bytes"):
        read_index(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is missing"):
        read_index(folder)
    (folder / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"no \.metadata"):
        read_index(folder)


def test_malformed_tables(folder: Path) -> None:
    def changed(change: Any) -> str:
        content = metadata_of()
        change(content)
        return refused(folder, pickle.dumps(content))

    original = (folder / ".metadata").read_bytes()

    def metadata_of() -> Metadata:
        return pickle.loads(original)

    key = "decoder.final_layernorm.weight"
    place = next(k for k in metadata_of().storage_data if k.fqn == key)
    assert "no table" in changed(lambda m: setattr(m, "state_dict_metadata", [1]))
    assert "where the tensors lie" in changed(lambda m: setattr(m, "storage_data", None))
    assert f"where {key} at (0,) lies" in changed(lambda m: m.storage_data.pop(place))
    assert "neither" in changed(lambda m: m.state_dict_metadata.update({key: 3}))
    assert "is no key" in changed(lambda m: m.state_dict_metadata.update({"\x1b[2J": 3}))
    assert key in changed(lambda m: setattr(m.state_dict_metadata[key].properties, "dtype", torch.strided))
    assert key in changed(lambda m: setattr(m.state_dict_metadata[key], "size", (3, -1)))
    assert key in changed(lambda m: setattr(m.state_dict_metadata[key], "chunks", {}))
    assert key in changed(lambda m: setattr(m.state_dict_metadata[key].chunks[0], "sizes", ("a",)))
    assert "other axes" in changed(lambda m: setattr(m.state_dict_metadata[key].chunks[0], "sizes", (1, 32)))
    assert "entry of storage_data" in changed(lambda m: m.storage_data.update({"a": 1}))
    assert "entry of storage_data" in changed(lambda m: m.storage_data.update({MetadataIndex(key, [1]): "x"}))
    content = metadata_of()
    content.storage_data[MetadataIndex(key[:-1] + "X", place.offset)] = content.storage_data[place]
    twice = pickle.dumps(content).replace(key[:-1].encode() + b"X", key.encode())
    assert "is stored twice" in refused(folder, twice)
    compressed = _StorageInfo("__0_0.distcp", 0, 10, ["zstd"])
    assert "stored transformed" in changed(lambda m: m.storage_data.update({place: compressed}))


def test_objects_without_their_state(folder: Path) -> None:
    module = b"torch.distributed.checkpoint.metadata"
    assert "malformed (AttributeError)" in refused(folder, b"\x80\x02c" + module + b"\nMetadata\n)\x81.")


def test_the_reader_starts_without_the_environment(folder: Path, tmp_path: Path) -> None:
    # Neither a planted module in the current folder or PYTHONPATH nor a start-up file must run in the child.
    trap = "raise SystemExit('trap')"
    for name in ("pickle.py", "json.py", "sitecustomize.py", "checkpoints_tools.py"):
        (tmp_path / name).write_text(trap)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import os; "
        "from checkpoints_tools.torch_dist.read import read_index; os.chdir(sys.argv[3]); "
        "os.environ['PYTHONPATH'] = sys.argv[3]; print(len(read_index(Path(sys.argv[1])).tensors))"
    )
    root = Path(child.__file__).parents[2]
    command = [sys.executable, "-I", "-c", code, str(folder), str(root), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (
        0,
        str(len(metadata(folder).state_dict_metadata) - 8),
    ), done


def test_a_large_index_takes_little_memory(tmp_path: Path) -> None:
    """22,000 chunks with their save plans, as of a 32B model at TP 8, PP 8 with its optimizer."""
    write_large(tmp_path, tensors=344, chunks=64)
    code = (
        "import sys, resource; from pathlib import Path; sys.path.append(sys.argv[2]); "
        "from checkpoints_tools.torch_dist.read import read_index; index = read_index(Path(sys.argv[1])); "
        "kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN); "
        "print(sum(len(t.chunks) for t in index.tensors.values()), *(resource.getrusage(k).ru_maxrss for k in kinds))"
    )
    root = Path(child.__file__).parents[2]
    command = [sys.executable, "-I", "-c", code, str(tmp_path), str(root)]
    # A shell in between: a process forked from this one would begin with its size.
    done = subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chunks, parent, reader = map(int, done.stdout.split())
    assert chunks == 344 * 64
    assert parent + reader < 120 * 1024


def write_large(folder: Path, *, tensors: int, chunks: int) -> None:
    """Metadata of optimizer tensors in a file without content."""
    content, plans = Metadata({}, storage_data={}), [SavePlan([]) for _ in range(chunks)]
    at = 0
    for n in range(tensors):
        key = f"optimizer.state.exp_avg.decoder.layers.{n}.mlp.linear_fc1.weight"
        properties, shape = TensorProperties(dtype=torch.float32), torch.Size([chunks * 300, 5120])
        stored = content.state_dict_metadata[key] = TensorStorageMetadata(properties, shape, [])
        for rank in range(chunks):
            start, size = torch.Size([rank * 300, 0]), torch.Size([300, 5120])
            stored.chunks.append(ChunkStorageMetadata(start, size))
            place = MetadataIndex("".join(list(key)), start)
            content.storage_data[place] = _StorageInfo(f"__{rank}_0.distcp", at, 6_145_536 + n)
            at += 6_145_536 + n
            data = TensorWriteData(ChunkStorageMetadata(start, size), TensorProperties(torch.float32), shape)
            plans[rank].items.append(WriteItem(place, WriteItemType.SHARD, tensor_data=data))
    for rank in range(chunks):
        with open(folder / f"__{rank}_0.distcp", "wb") as stream:
            stream.truncate(at)
    # Each rank's plan comes from its own process and shares nothing with the rest.
    content.all_local_plans = [pickle.loads(pickle.dumps(plan)) for plan in plans]  # type: ignore[attr-defined]
    (folder / ".metadata").write_bytes(pickle.dumps(content))
