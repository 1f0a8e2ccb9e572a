"""Pickles in checkpoints: what tensors need passes, anything else is refused before it runs."""

from __future__ import annotations

import os
import pickle
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.safe_pickle import check_pickle, check_torch_dist


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


def test_real_common_state_passes_and_a_planted_one_does_not(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata(state_dict_metadata={})))
    torch.save(
        {"iteration": 3, "tensor": torch.ones(2), "half": torch.ones(2).bfloat16()}, tmp_path / "common.pt"
    )
    check_torch_dist(tmp_path)
    trace = tmp_path / "trace"
    with zipfile.ZipFile(tmp_path / "common.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Touch(trace)))
    with pytest.raises(CheckpointError, match=r"common\.pt"):
        check_torch_dist(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("damage", [b"", b"not a pickle", pickle.dumps([1, 2])[:-2]])
def test_garbage_is_named_not_raised_raw(damage: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a readable pickle"):
        check_pickle(damage, name=".metadata")
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata(state_dict_metadata={})))
    (tmp_path / "common.pt").write_bytes(damage)
    with pytest.raises(CheckpointError, match="damaged"):
        check_torch_dist(tmp_path)


def test_a_folder_without_metadata_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.metadata"):
        check_torch_dist(tmp_path)


def test_the_planted_pickle_would_have_run(tmp_path: Path) -> None:
    # Otherwise the tests above would pass with any pickle.
    data = pickle.dumps(Touch(tmp_path / "trace"))
    assert "system" in {arg for _, arg, _ in pickletools.genops(data) if isinstance(arg, str)}
    pickle.loads(data)
    assert (tmp_path / "trace").exists()
