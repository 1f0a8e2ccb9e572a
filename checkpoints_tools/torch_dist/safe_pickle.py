"""Read foreign pickles without importing or running what they name: a checkpoint may name tensors' own types only."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

from checkpoints_tools.errors import CheckpointError

ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "MetadataIndex", "TensorProperties",
        "StorageMeta", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {
        "SavePlan", "WriteItem", "TensorWriteData", "BytesIOWriteData", "WriteItemType",
    },
    # Subclasses of Metadata and SavePlan that megatron-core wrote up to 0.15, and still has for reading.
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "torch.serialization": {"_get_layout"},
    "torch._utils": {"_rebuild_tensor_v2"},
    "torch": {
        "Size", "bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool",
        "float8_e4m3fn", "float8_e5m2",
        "BFloat16Storage", "HalfStorage", "FloatStorage", "DoubleStorage", "LongStorage", "IntStorage",
        "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage",
    },
    "collections": {"OrderedDict"},
}  # fmt: skip


class Placeholder:
    """Stands for any allowed type or function: one object that keeps no state and runs no code of the file's."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> Placeholder:
        """The one object."""
        return _SHARED

    def __setstate__(self, state: Any) -> None:
        forget(state)

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


_SHARED: Placeholder = object.__new__(Placeholder)


def forget(state: Any) -> None:
    """Empty an object's state once it was read: the unpickler's memo would hold it to the end."""
    if type(state) is dict:
        state.clear()


class RestrictedUnpickler(pickle.Unpickler):
    """Loads stand-ins for what the allow-list names; asking for anything else is a CheckpointError.

    `stand_ins` ((module, name) -> object) gives those that matter to the reader; the rest become `Placeholder`.
    """

    stand_ins: ClassVar[Mapping[tuple[str, str], Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of an allowed name."""
        if name not in ALLOWED.get(module, ()):
            asked = repr(f"{module}.{name}"[:100])[1:-1]
            raise CheckpointError(f"a pickle asks for {asked}, which no checkpoint needs: refused")
        return self.stand_ins.get((module, name), Placeholder)

    def persistent_load(self, _: Any) -> Any:
        """A tensor's storage."""
        return _SHARED


def load_restricted(data: bytes, *, name: str, kind: type[RestrictedUnpickler] = RestrictedUnpickler) -> Any:
    """Unpickle into stand-ins.

    A crafted pickle can still take time and memory: limit the process that runs this.

    Raises:
        CheckpointError: It names a type or function outside the allow-list, or is no pickle.
    """
    try:
        return kind(io.BytesIO(data)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except MemoryError:
        raise CheckpointError(f"{name} is not a readable pickle: it asks for too much memory") from None
    except Exception as error:
        raise CheckpointError(f"{name} is not a readable pickle: {str(error)[:200]!r}") from None


def check_pickle(data: bytes, *, name: str, kind: type[RestrictedUnpickler] = RestrictedUnpickler) -> None:
    """Walk a pickle without importing or running what it names; raises CheckpointError as `load_restricted`."""
    load_restricted(data, name=name, kind=kind)
