"""Look before a foreign pickle is loaded: a checkpoint may name tensors' own types and nothing else."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from checkpoints_tools.errors import CheckpointError

ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "MetadataIndex", "TensorProperties",
        "StorageMeta", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "TensorWriteData", "WriteItemType"},
    "torch.distributed.checkpoint._nested_dict": set(),
    "torch.serialization": {"_get_layout"},
    "torch._utils": {"_rebuild_tensor_v2"},
    "torch": {
        "Size", "bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool",
        "BFloat16Storage", "HalfStorage", "FloatStorage", "DoubleStorage", "LongStorage", "IntStorage",
        "ByteStorage", "BoolStorage",
    },
    "collections": {"OrderedDict"},
}  # fmt: skip


class _Placeholder:
    """Stands for any allowed type or function: it keeps no state and runs no code of the file's."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class _Checker(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise CheckpointError(f"a pickle asks for {module}.{name}, which no checkpoint needs: refused")
        return _Placeholder

    def persistent_load(self, _: Any) -> Any:
        return _Placeholder()


def check_pickle(data: bytes, *, name: str) -> None:
    """Walk a pickle without importing or running what it names.

    Raises:
        CheckpointError: It names a type or function outside the allow-list, or is no pickle.
    """
    try:
        _Checker(io.BytesIO(data)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except Exception as error:
        raise CheckpointError(f"{name} is not a readable pickle: {error}") from None


def check_torch_dist(folder: Path) -> None:
    """Check `.metadata` and `common.pt` of a torch_dist folder before anything unpickles them."""
    metadata = folder / ".metadata"
    if not metadata.is_file():
        raise CheckpointError(f"{folder} is not a torch_dist checkpoint: it has no .metadata file")
    check_pickle(metadata.read_bytes(), name=str(metadata))
    common = folder / "common.pt"
    if common.is_file():
        try:
            with zipfile.ZipFile(common) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                data = archive.read(name)
        except (zipfile.BadZipFile, StopIteration) as error:
            raise CheckpointError(f"{common} is damaged: {error}") from None
        check_pickle(data, name=str(common))
