"""Pickles in checkpoints: what tensors need passes, anything else is refused before it runs."""

from __future__ import annotations

import os
import pickle
import pickletools
import zipfile
from argparse import Namespace
from datetime import timedelta
from pathlib import Path, PurePosixPath

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.read import read_index
from checkpoints_tools.torch_dist.safe_pickle import check_pickle


class Touch:
    """Unpickles into a shell command that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_command_in_a_pickle_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    data = pickle.dumps({"a": [Touch(trace)]}, protocol=protocol)
    with pytest.raises(CheckpointError, match="system"):
        check_pickle(data, name=".metadata")
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["builtins\neval", "builtins\ngetattr", "torch\nload", "torch.serialization\nload"]
)
def test_dangerous_names_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError):
        check_pickle(f"c{name}\n(S'x'\ntR.".encode(), name="common.pt")


def test_real_metadata_passes() -> None:
    metadata = Metadata(state_dict_metadata={"a": BytesStorageMetadata()})
    check_pickle(pickle.dumps(metadata), name=".metadata")


def folder_with_common(tmp_path: Path, common: object) -> Path:
    metadata = Metadata(state_dict_metadata={}, storage_data={})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with zipfile.ZipFile(tmp_path / "common.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(common))
    return tmp_path


@pytest.mark.parametrize("strict", [True, False])
def test_real_common_state_passes_and_a_planted_one_does_not(tmp_path: Path, strict: bool) -> None:
    folder_with_common(tmp_path, None)
    torch.save(
        {"iteration": 3, "tensor": torch.ones(2), "half": torch.ones(2).bfloat16()}, tmp_path / "common.pt"
    )
    read_index(tmp_path, strict=strict)
    trace = tmp_path / "trace"
    folder_with_common(tmp_path, {"args": [Touch(trace)]})
    with pytest.raises(CheckpointError, match=r"common\.pt.*system"):
        read_index(tmp_path, strict=strict)
    assert not trace.exists()


def test_settings_of_a_run_pass_unless_torch_is_to_load_them(tmp_path: Path) -> None:
    settings = Namespace(lr=1e-6, path=PurePosixPath("a"), limit=timedelta(hours=4))
    folder_with_common(tmp_path, {"args": settings, "iteration": 3})
    read_index(tmp_path)
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        read_index(tmp_path, strict=True)


def test_two_pickles_in_one_file_are_refused(tmp_path: Path) -> None:
    folder_with_common(tmp_path, {})
    with zipfile.ZipFile(tmp_path / "common.pt", "a") as archive:
        archive.writestr("other/data.pkl", pickle.dumps(Touch(tmp_path / "trace")))
    with pytest.raises(CheckpointError, match="one plain data"):
        read_index(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"not a pickle", pickle.dumps([1, 2])[:-2]])
def test_garbage_is_named_not_raised_raw(damage: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a readable pickle"):
        check_pickle(damage, name=".metadata")
    folder_with_common(tmp_path, {})
    (tmp_path / "common.pt").write_bytes(damage)
    with pytest.raises(CheckpointError, match="damaged"):
        read_index(tmp_path)


def test_a_folder_without_metadata_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.metadata"):
        read_index(tmp_path)


def test_the_planted_pickle_would_have_run(tmp_path: Path) -> None:
    # Otherwise the tests above would pass with any pickle.
    data = pickle.dumps(Touch(tmp_path / "trace"))
    assert "system" in {arg for _, arg, _ in pickletools.genops(data) if isinstance(arg, str)}
    pickle.loads(data)
    assert (tmp_path / "trace").exists()
