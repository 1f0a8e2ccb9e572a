"""Hugging Face model folders: what is stored where, and writing one tensor at a time."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from checkpoints_tools.copying.files import sync_file
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.safetensors_file import StoredTensor, TensorSpec, plan_shards, read_header
from checkpoints_tools.small_files import read_text

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 5 * 10**9

_MAX_INDEX_BYTES = 16 << 20
# Files beside the weights that belong to the model: configuration, tokenizer, chat template, licence.
_CARRIED = re.compile(
    r"config\.json|generation_config\.json|tokenizer.*\.(json|model)|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.(json|txt)|merges\.txt|chat_template\.(jinja|json)|.*\.tiktoken|LICENSE.*|NOTICE.*"
)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model folder: `model.safetensors`, or the files that its index names.

    Raises CheckpointError when there are none, a file is missing or damaged, or index and files disagree.
    """
    if (folder / SINGLE_FILE).is_file():
        return read_header(folder / SINGLE_FILE)
    if not (folder / INDEX_FILE).is_file():
        raise CheckpointError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors weights are read"
        )
    places = _read_index(folder / INDEX_FILE)
    tensors: dict[str, StoredTensor] = {}
    for file_name in sorted(set(places.values())):
        for name, tensor in read_header(folder / file_name).items():
            if places.get(name) != file_name:
                raise CheckpointError(
                    f"{folder / file_name} holds {name}, which the index does not place there"
                )
            tensors[name] = tensor
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{folder}: the index names tensors that no file holds: {', '.join(missing[:5])}"
        )
    return tensors


def _read_index(file: Path) -> dict[str, str]:
    text = read_text(file, max_bytes=_MAX_INDEX_BYTES)
    if text is None:
        raise CheckpointError(f"{file} is missing")
    try:
        index = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{file} has no weight_map")
    for place in places.values():
        # A bare file name: an index from elsewhere must not make us read outside the folder.
        if not isinstance(place, str) or not re.fullmatch(r"[\w.-]+\.safetensors", place):
            raise CheckpointError(
                f"{file}: {repr(place)[:80]} is not the name of a safetensors file in this folder"
            )
    return places


def index_json(places: Mapping[str, str], total_size: int) -> bytes:
    """The index of a sharded model: which file (name) holds which tensor (name); `total_size` in bytes."""
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(places.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()


def carried_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer, chat template and licence files that go with the model unchanged."""
    return sorted(f for f in folder.iterdir() if _CARRIED.fullmatch(f.name) and f.is_file())


class TensorWriter:
    """Writes a model's tensors into a folder, in the order announced, one at a time.

    Each file appears under its own name only when it is complete and synced; the index of a sharded model
    comes last. Leaving the `with` block on an error removes what was begun.

        with TensorWriter(folder, specs) as writer:
            for spec in specs:
                writer.write(spec.name, [data])
    """

    def __init__(
        self, folder: Path, specs: Sequence[TensorSpec], *, max_shard_bytes: int = DEFAULT_SHARD_BYTES
    ) -> None:
        self.shards = plan_shards(specs, max_shard_bytes)
        self.total_size = sum(spec.nbytes for spec in specs)
        self._folder = folder
        self._pending = list(specs)
        self._places = {name: shard.file_name for shard in self.shards for name in shard.starts}
        self._starts = {name: start for shard in self.shards for name, start in shard.starts.items()}
        self._streams: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        for shard in self.shards:
            stream = open(self._partial(shard.file_name), "wb")
            self._streams[shard.file_name] = stream
            stream.write(shard.header)
        return self

    def write(self, name: str, data: Iterable[bytes | memoryview]) -> None:
        """Write the next tensor's bytes: little endian, row-major, in pieces of any size.

        Raises ValueError when the tensor is not the next one announced or the size is wrong.
        """
        spec = self._pending.pop(0)
        if spec.name != name:
            raise ValueError(f"expected {spec.name}, got {name}")
        stream = self._streams[self._places[name]]
        stream.seek(self._starts[name])
        written = sum(stream.write(part) for part in data)
        if written != spec.nbytes:
            raise ValueError(f"{name}: expected {spec.nbytes} bytes, got {written}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for stream in self._streams.values():
                # After a failed write (disk full) closing fails again; the first error is the one to report.
                with contextlib.nullcontext() if error is None else contextlib.suppress(OSError):
                    stream.close()
            if error is None:
                self._publish()
        finally:
            for name in self._streams:
                self._partial(name).unlink(missing_ok=True)

    def _publish(self) -> None:
        if self._pending:
            raise ValueError(
                f"{len(self._pending)} tensors were not written, the first is {self._pending[0].name}"
            )
        if len(self.shards) > 1:
            self._partial(INDEX_FILE).write_bytes(index_json(self._places, self.total_size))
        names = [shard.file_name for shard in self.shards] + [INDEX_FILE] * (len(self.shards) > 1)
        for name in names:
            sync_file(self._partial(name))
        for name in names:
            os.replace(self._partial(name), self._folder / name)
        sync_file(self._folder)

    def _partial(self, name: str) -> Path:
        return self._folder / f".{name}.partial"
