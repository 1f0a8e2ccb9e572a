"""Notes on the files that an export carries over byte for byte: what in them misleads, or tells too much."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.small_files import Json, read_json

_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")
# Where transformers notes the folder that it read; a model saved from a local folder carries its path.
_PATH_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")
_LOCAL = re.compile(r"[/~\\]|\.\.?[/\\]|file:|[A-Za-z]:[/\\]")


def dtype_to_name(stored: Collection[str], configured: str) -> str | None:
    """The dtype (torch's name) to load a model with, None where config.json's, `configured`, is right.

    Loaders convert tensors to config.json's dtype unless told otherwise. `stored` are safetensors dtypes; where
    config.json's is not among them, it is the one that holds all of them exactly.
    """
    names = {_TORCH_NAMES[kind] for kind in stored if kind in _TORCH_NAMES}
    if not names or configured in names:
        return None
    if len(names) == 1:
        return names.pop()
    return "float64" if "float64" in names else "float32"


def carried_notes(dtypes: Collection[str], files: Iterable[Path]) -> list[str]:
    """What a user should know of carried `files`, a sentence each; `dtypes` are the written tensors' (safetensors)."""
    notes = []
    for file in files:
        values: Json = {}
        if file.name in _CONFIGS:
            with contextlib.suppress(CheckpointError):  # not ours to judge; it is carried as it is
                values = read_json(file) or {}
        if file.name == "config.json":
            notes += _dtype_note(dtypes, values)
        paths = [f"{key} {values[key]!r:.120}" for key in _PATH_KEYS if _is_local(values.get(key))]
        if paths:
            notes.append(
                f"{file.name} holds a local path ({', '.join(paths)}), and is carried over as it is: "
                "remove it there if the public should not read it"
            )
    return notes


def _dtype_note(dtypes: Collection[str], config: Json) -> list[str]:
    stated = config.get("dtype") or config.get("torch_dtype")
    configured = str(stated).removeprefix("torch.")
    name = dtype_to_name(dtypes, configured) if stated else None
    if name is None:
        return []
    return [
        f"config.json, carried over as it is, says {configured}, but tensors are {name}: load them with "
        f'dtype="{name}"'
    ]


def _is_local(value: object) -> bool:
    """Whether a value is a path rather than a hub id, which has one slash at most."""
    return isinstance(value, str) and (_LOCAL.match(value) is not None or value.count("/") > 1)
