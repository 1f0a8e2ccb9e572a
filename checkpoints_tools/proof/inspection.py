"""What lies in a model folder or checkpoint, from headers and file sizes alone: no tensor is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Literal

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import read_hf_config
from checkpoints_tools.hf_folder import stored_tensors
from checkpoints_tools.hf_model import unknown_tensors
from checkpoints_tools.megatron_model import model_layouts
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.models import config_contradictions, is_hf_folder
from checkpoints_tools.proof.manifest import MANIFEST_FILE, read_manifest
from checkpoints_tools.safetensors_file import ITEM_BYTES
from checkpoints_tools.shapes import Index
from checkpoints_tools.torch_dist.folders import CheckpointFolder, find_checkpoint
from checkpoints_tools.torch_dist.index import DistIndex, DistTensor
from checkpoints_tools.torch_dist.read import read_index
from checkpoints_tools.torch_dist.write import CONFIG_FILE
from checkpoints_tools.weight_map import weight_map
from checkpoints_tools.weight_map.names import EMBEDDING, HF_EMBEDDING, OUTPUT, is_optimizer_key, parse_key

_WRITER = re.compile(r"__(\d+)_\d+\.distcp")
# What a file is, by its name; the first that fits.
_ROLES = (
    ("weights", r".*\.safetensors|model\.safetensors\.index\.json|.*\.distcp"),
    ("checkpoint", r"\.metadata|metadata\.json|common\.pt|latest_checkpointed_iteration\.txt|.*train_state\.pt"),
    ("manifest", re.escape(MANIFEST_FILE)),
    ("config", r"config\.json|generation_config\.json"),
    ("tokenizer", r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
                  r"|chat_template\..*|.*\.tiktoken"),
    ("run", r"run_config\.yaml|config\.ya?ml|training_info\.json|manifest\.json"),
    ("text", r"README.*|LICENSE.*|NOTICE.*|.*\.md"),
)  # fmt: skip
_MOST_FILES = 10_000


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor as it is stored, under its own key.

    `pieces`: how many chunks cut each axis (1: none), `chunks`: their number. `role` is model, optimizer or
    other (in a checkpoint: a key that is no weight of a known model and no known state).
    """

    key: str
    dtype: str
    shape: Index
    nbytes: int
    chunks: int
    pieces: Index
    role: Literal["model", "optimizer", "other"]


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file beside the tensors, relative to the folder. `role` is one of _ROLES or unknown."""

    name: str
    nbytes: int
    role: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a folder.

    `layers`: how decoder layers are stored, stacked along a leading axis or under a key each. `tensor_parallel`:
    the size that the chunks were cut for, None when they do not tell. `writers`: how many ranks wrote files.
    `vocabulary`: rows stored of the embedding. `parameters`: of the model, without vocabulary padding where
    there is a config. `problems`: what keeps the folder from being used; empty when it is complete.
    """

    path: str
    format: Literal["huggingface", "torch_dist"]
    weights: str
    config: ModelConfig | None
    config_note: str
    tensors: tuple[TensorRow, ...]
    parameters: int
    layers: Literal["stacked", "per layer"] | None
    tensor_parallel: int | None
    writers: int | None
    vocabulary: int | None
    items: int
    item_bytes: int
    files: tuple[FileRow, ...]
    digest: str | None
    problems: tuple[str, ...]

    def of(self, role: str) -> list[TensorRow]:
        """The tensors of a role."""
        return [tensor for tensor in self.tensors if tensor.role == role]

    @property
    def model_bytes(self) -> int:
        """Stored bytes of the model's tensors."""
        return sum(tensor.nbytes for tensor in self.of("model"))

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of the model's tensors by safetensors dtype."""
        return dict(Counter(tensor.dtype for tensor in self.of("model")).most_common())

    @property
    def padding(self) -> int | None:
        """Rows of the stored embedding beyond the config's vocabulary."""
        if self.vocabulary is None or self.config is None:
            return None
        return self.vocabulary - self.config.vocab_size


def inspect(path: Path, *, base: Path | None = None) -> Inspection:
    """Look at a Hugging Face folder or a checkpoint; `base` gives the config that a checkpoint lacks.

    Raises:
        CheckpointError: There is no model, or its headers cannot be read.
    """
    path = path.expanduser()
    return _huggingface(path) if is_hf_folder(path) else _checkpoint(path, base)


def _huggingface(path: Path) -> Inspection:
    stored = stored_tensors(path)
    config, note = _config([path])
    problems: list[str] = []
    order = sorted(stored, key=_natural)
    counted = order
    if config is not None:
        table = weight_map(config)
        counted = [name for name in table.hf if name in stored]
        order = counted + [name for name in order if name not in table.hf]
        problems = _few("missing tensor", [name for name in table.hf if name not in stored])
        problems += _few("unknown tensor", unknown_tensors(stored, table, config))
        problems += _few("wrong shape", [
            f"{name} has {list(stored[name].shape)}, config.json says {list(table.hf[name])}"
            for name in counted if stored[name].shape != table.hf[name]
        ])  # fmt: skip
    rows = tuple(
        TensorRow(name, t.dtype, t.shape, t.nbytes, 1, (1,) * len(t.shape), "model")
        for name, t in ((name, stored[name]) for name in order)
    )
    embedding = stored.get(HF_EMBEDDING)
    digest, manifest_problems = _manifest(path)
    return Inspection(
        path=str(path),
        format="huggingface",
        weights="",
        config=config,
        config_note=note,
        tensors=rows,
        parameters=sum(prod(stored[name].shape) for name in counted),
        layers=None,
        tensor_parallel=None,
        writers=None,
        vocabulary=embedding.shape[0] if embedding and embedding.shape else None,
        items=0,
        item_bytes=0,
        files=_files(path),
        digest=digest,
        problems=(*problems, *manifest_problems),
    )


def _few(what: str, names: list[str], most: int = 3) -> list[str]:
    shown = [f"{what}: {name}" for name in names[:most]]
    return shown + ([f"{what}: {len(names) - most} more"] if len(names) > most else [])


def _checkpoint(path: Path, base: Path | None) -> Inspection:
    found = find_checkpoint(path, complete=False)
    index = read_index(found.iteration)
    config, note = _config([f for f in (base, found.files) if f is not None])
    rows = tuple(_row(tensor) for tensor in index.tensors.values())
    model = [row for row in rows if row.role == "model"]
    vocabulary = next((row.shape[0] for row in model if row.key == EMBEDDING and row.shape), None)
    parameters = sum(prod(row.shape) for row in model)
    if config is not None and vocabulary is not None:
        padded = [row for row in model if row.key in (EMBEDDING, OUTPUT) and row.shape]
        parameters -= sum((row.shape[0] - config.vocab_size) * prod(row.shape[1:]) for row in padded)
    digest, manifest_problems = _manifest(found.root)
    return Inspection(
        path=str(path),
        format="torch_dist",
        weights=_relative(found.iteration, path),
        config=config,
        config_note=note,
        tensors=rows,
        parameters=parameters,
        layers=_layer_storage(index),
        tensor_parallel=_tensor_parallel(model),
        writers=_writers(index),
        vocabulary=vocabulary,
        items=len(index.items),
        item_bytes=sum(item.record_bytes for item in index.items.values()),
        files=_files(path),
        digest=digest,
        problems=(*_incomplete(found, index, config), *manifest_problems),
    )


def _row(tensor: DistTensor) -> TensorRow:
    starts = zip(*(chunk.start for chunk in tensor.chunks), strict=True)
    pieces = tuple(len(set(axis)) for axis in starts)
    known = parse_key(tensor.key)
    role: Literal["model", "optimizer", "other"] = "model"
    if known is None:
        role = "optimizer" if is_optimizer_key(tensor.key) else "other"
    nbytes = prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    return TensorRow(tensor.key, tensor.dtype, tensor.shape, nbytes, len(tensor.chunks), pieces, role)


def _layer_storage(index: DistIndex) -> Literal["stacked", "per layer"] | None:
    keys = [key for key in map(parse_key, index.tensors) if key is not None]
    if any(key.stacked for key in keys):
        return "stacked"
    return "per layer" if any(key.layer is not None for key in keys) else None


def _tensor_parallel(model: Iterable[TensorRow]) -> int | None:
    """The number of pieces of the matrices that Megatron splits over their columns and nobody else does."""
    column_split = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")
    sizes = {row.pieces[-1] for row in model if row.key.endswith(column_split) and row.pieces}
    return sizes.pop() if len(sizes) == 1 else None


def _writers(index: DistIndex) -> int | None:
    files = {chunk.file for tensor in index.tensors.values() for chunk in tensor.chunks}
    ranks = {match[1] for match in map(_WRITER.fullmatch, files) if match}
    return len(ranks) or None


def _incomplete(found: CheckpointFolder, index: DistIndex, config: ModelConfig | None) -> list[str]:
    problems = []
    if not (found.iteration / CONFIG_FILE).is_file():
        problems.append(f"{CONFIG_FILE} is missing: Megatron writes it last, so the save did not finish")
    if config is not None:
        problems += [
            f"config.json is another model's: {fault}" for fault in config_contradictions(found, config)
        ]
        try:
            model_layouts(index, config)
        except CheckpointError as error:
            problems.append(str(error))
    return problems


def _config(folders: Iterable[Path]) -> tuple[ModelConfig | None, str]:
    """The first config.json, and a note where there is none or it cannot be used."""
    file = next((f / "config.json" for f in folders if (f / "config.json").is_file()), None)
    if file is None:
        return None, "no config.json: tensors are shown under the keys that are stored"
    try:
        return read_hf_config(file), ""
    except CheckpointError as error:
        return None, str(error)


def _manifest(folder: Path) -> tuple[str | None, list[str]]:
    if not (folder / MANIFEST_FILE).exists():
        return None, []
    try:
        return read_manifest(folder).digest, []
    except CheckpointError as error:
        return None, [str(error)]


def _files(folder: Path) -> tuple[FileRow, ...]:
    rows: list[FileRow] = []
    for file in sorted(islice(folder.rglob("*"), _MOST_FILES)):  # does not follow links to folders
        if file.is_file():
            role = next((role for role, names in _ROLES if re.fullmatch(names, file.name)), "unknown")
            name = _relative(file, folder)
            shown = name if name.isprintable() else ascii(name)
            rows.append(FileRow(shown, file.stat().st_size, role))
    return tuple(rows)


def _relative(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else file.name


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that counts layers as numbers."""
    return [
        (int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part) for part in name.split(".")
    ]


def to_json(found: Inspection) -> dict[str, Any]:
    """All that is known, as JSON types."""
    content = asdict(found)
    content["config"] = None if found.config is None else asdict(found.config)
    optimizer = found.of("optimizer")
    return content | {
        "model_bytes": found.model_bytes,
        "dtypes": found.dtypes,
        "padding": found.padding,
        "complete": not found.problems,
        "optimizer": {"tensors": len(optimizer), "bytes": sum(row.nbytes for row in optimizer)},
    }
