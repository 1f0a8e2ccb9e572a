"""Small JSON and YAML files from elsewhere, read within bounds and taken apart by type.

A run folder is plain text that people edit, merge and send to one another. What is absent is None; what is there
and cannot be understood is an error, since a release would else silently lack it.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints_tools.errors import CheckpointError

MAX_BYTES = 1 << 20
_MAX_YAML_BYTES = 1 << 18  # a run's configuration has some 20 kB, and a megabyte takes half a minute to parse
_LARGEST = 1e15
# YAML 1.1 reads 1e-6, without a dot, as text; OmegaConf and people write it as a number.
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")

Json = Mapping[str, Any]


def read_text(file: Path, *, max_bytes: int = MAX_BYTES) -> str | None:
    """The text of a regular file, None where there is none. Raises CheckpointError: unreadable or too large."""
    try:
        # Not blocking: a named pipe in the file's place must not hang us.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{file} is not a regular file")
    with open(descriptor, "rb") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise CheckpointError(f"{file} is larger than any such file ({max_bytes} bytes)")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not text in UTF-8: {error}") from error


def read_json(file: Path) -> Json | None:
    """The object in a JSON file, None where there is no file. Raises CheckpointError for anything else."""
    text = read_text(file)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}; repair or remove it") from error
    return _mapping(value, file)


def read_yaml(file: Path) -> Json | None:
    """The mapping in a YAML file, None where there is no file. Raises CheckpointError for anything else."""
    text = read_text(file, max_bytes=_MAX_YAML_BYTES)
    return None if text is None else _mapping(parse_yaml(text, file), file)


def parse_yaml(text: str, file: Path) -> Any:
    """The value of a YAML text of `file`. Raises CheckpointError."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values only; aliases share memory, but merging them multiplies: a few lines fill it."""

        def flatten_mapping(self, node: Any) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise CheckpointError(f"{file}: the YAML merge key << is not supported")
            super().flatten_mapping(node)

        def construct_yaml_int(self, node: Any) -> Any:
            # YAML 1.1's numbers of base 60 (1:30) are text in 1.2; taken as numbers they cost quadratic time.
            return node.value if ":" in str(node.value) else super().construct_yaml_int(node)

        def construct_yaml_float(self, node: Any) -> Any:
            return node.value if ":" in str(node.value) else super().construct_yaml_float(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    try:
        return yaml.load(text, Loader=Loader)  # a SafeLoader
    except (
        yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, LookupError, ArithmeticError,
    ) as error:  # fmt: skip
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} cannot be read as YAML: {reason}; repair or remove it") from error


def _mapping(value: Any, file: Path) -> Json:
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold an object of keys and values")
    return value


class Reader:
    """Values of a nested mapping by dotted path: None where the path ends or the value is null.

    Every method raises CheckpointError, naming file and key, for a value of another type.
    """

    __slots__ = ("_tree", "_what")

    def __init__(self, tree: Any, what: str) -> None:
        if not isinstance(tree, dict):
            raise CheckpointError(f"{what} must be an object of keys and values, not {_shown(tree)}")
        self._tree, self._what = tree, what

    def value(self, path: str) -> Any:
        """The value as it stands."""
        tree: Any = self._tree
        for key in path.split("."):
            tree = tree.get(key) if isinstance(tree, dict) else None
        return tree

    def number(self, path: str, *, low: float = -_LARGEST, high: float = _LARGEST) -> float | None:
        """A finite number in [low, high]."""
        value = self.value(path)
        if value is None:
            return None
        if isinstance(value, str) and len(value) < 40 and _SCIENTIFIC.fullmatch(value):
            value = float(value)
        sound = not isinstance(value, bool) and isinstance(value, int | float)
        if not sound or not low <= value <= high or not math.isfinite(value):
            bounds = f" from {low:g} to {high:g}" if (low, high) != (-_LARGEST, _LARGEST) else ""
            raise self.error(path, f"a number{bounds}")
        return value

    def share(self, path: str) -> float | None:
        """A share of 1."""
        return self.number(path, low=0, high=1)

    def count(self, path: str) -> int | None:
        """A whole number, zero or more."""
        value = self.number(path, low=0)
        if value is not None and value != int(value):
            raise self.error(path, "a whole number")
        return None if value is None else int(value)

    def text(self, path: str) -> str | None:
        """A string of at most 4096 characters."""
        value = self.value(path)
        if value is not None and (not isinstance(value, str) or len(value) > 4096):
            raise self.error(path, "a text")
        return value

    def flag(self, path: str) -> bool | None:
        """True or false."""
        value = self.value(path)
        if value is not None and not isinstance(value, bool):
            raise self.error(path, "true or false")
        return value

    def counts(self, path: str) -> tuple[int, ...]:
        """A list of at most 100 whole numbers, empty where there is none."""
        return tuple(n for item in self._items(path) if (n := item.count("item")) is not None)

    def texts(self, path: str) -> tuple[str, ...]:
        """A list of at most 100 strings, empty where there is none."""
        return tuple(t for item in self._items(path) if (t := item.text("item")) is not None)

    def readers(self, path: str) -> list[Reader]:
        """A reader for each entry of a list of at most 100 objects."""
        return [Reader(value, where) for where, value in self._entries(path)]

    def _items(self, path: str) -> list[Reader]:
        return [Reader({"item": value}, where) for where, value in self._entries(path)]

    def _entries(self, path: str) -> list[tuple[str, Any]]:
        value = self.value(path)
        if value is not None and (not isinstance(value, list) or len(value) > 100):
            raise self.error(path, "a list of at most 100 entries")
        return [(f"{self._what}: {path}[{i}]", entry) for i, entry in enumerate(value or [])]

    def section(self, path: str) -> Reader | None:
        """A reader of the mapping at a path."""
        value = self.value(path)
        return None if value is None else Reader(value, f"{self._what}: {path}")

    def error(self, path: str, expected: str) -> CheckpointError:
        """The error that says what the value at a path must be."""
        return CheckpointError(f"{self._what}: {path} must be {expected}, not {_shown(self.value(path))}")


def _shown(value: Any) -> str:
    """A value for a message. Containers are only named: with aliases a few lines of YAML print as gigabytes."""
    if isinstance(value, str):
        return repr(value[:80])
    return repr(value) if isinstance(value, bool | float) else f"a value of type {type(value).__name__}"
