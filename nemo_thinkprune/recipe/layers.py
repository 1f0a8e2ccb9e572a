"""From files and overrides to one tree of values that remembers where each came from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.keys import KeyPath, dotted
from nemo_thinkprune.recipe.yaml_file import Document, parse_mapping, parse_value

REPLACE = "_override_"


@dataclass(slots=True)
class Layers:
    """Merged values, the origin of each key ("file, line 3" or "override a.b=c"), what is wrong so far."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def origin(self, path: KeyPath) -> str | None:
        """Return where `path`, or else the nearest section around it, was written."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[:-1]
        return None

    def add(self, data: Mapping[str, Any], origin: Callable[[KeyPath], str | None]) -> None:
        """Merge `data` over what is there: sections key by key, everything else replaced."""
        self._merge(self.data, data, (), origin)

    def _merge(
        self,
        base: dict[str, Any],
        extra: Mapping[str, Any],
        prefix: KeyPath,
        origin: Callable[[KeyPath], str | None],
    ) -> None:
        for key, value in extra.items():
            if key == REPLACE:
                continue
            path = (*prefix, key)
            if source := origin(path):
                self.origins[path] = source
            if not isinstance(value, Mapping):
                base[key] = value
                continue
            if not isinstance(base.get(key), dict) or value.get(REPLACE) is True:
                base[key] = {}
            self._merge(base[key], value, path, origin)


def read_layers(path: Path) -> Layers:
    """Read a recipe file and the files that its `defaults:` name, each over the ones before it.

    `defaults:` is a file or a list of files, relative to the file that names them.  A section with
    `_override_: true` replaces the inherited one instead of being merged into it.

    Raises:
        UserError: a file that cannot be read or is not YAML, or files that inherit in a circle.
    """
    layers = Layers()
    _read(path, layers, (), None)
    return layers


def _read(path: Path, layers: Layers, chain: tuple[Path, ...], named_in: str | None) -> None:
    suffix = f" (named in {named_in})" if named_in else ""
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} is not the name of a recipe file{suffix}")
    real = Path(os.path.realpath(path))  # resolve() would raise at links that form a circle
    if real in chain:
        circle = " -> ".join(shown(item) for item in (*chain[chain.index(real) :], real))
        raise UserError(f"recipes inherit from each other in a circle: {circle}")
    name = shown(path)
    try:
        document = parse_mapping(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot read recipe {name}: {reason}{suffix}") from error
    except UserError as error:
        raise UserError(f"{name}, {error}{suffix}") from error
    layers.problems += [f"{text} ({name}, line {line})" for line, text in document.problems]
    data = dict(document.data)
    for parent in _parents(data.pop("defaults", None), name, document):
        _read(path.parent / parent, layers, (*chain, real), f"{name}, line {document.lines[('defaults',)]}")
    layers.add(data, lambda key: f"{name}, line {document.lines[key]}" if key in document.lines else None)


def _parents(value: Any, name: str, document: Document) -> list[str]:
    """Return the file names in `defaults:`."""
    if value is None:
        return []
    parents = [value] if isinstance(value, str) else value
    if not isinstance(parents, list) or not all(isinstance(one, str) and one.strip() for one in parents):
        line = document.lines[("defaults",)]
        raise UserError(f"{name}, line {line}: defaults must be the name of a recipe file or a list of names")
    return parents


def shown(path: Path) -> str:
    """Return a path as messages show it: relative to the working directory where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Parse `a.b=c`: a dotted key and a YAML value, so 1e-6 is a number, [1, 2] a list and null nothing.

    Raises:
        UserError: no `=`, an empty key, a sign before the key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise UserError(f"override '{text}': expected KEY=VALUE, such as grpo.max_num_steps=10")
    if key[:1] in ("+", "~"):
        raise UserError(f"override '{text}': write the key without '{key[0]}'")
    parts = tuple(key.split("."))
    if not all(parts):
        raise UserError(f"override '{text}': '{key}' is not a path of keys")
    if " #" in value and value.strip()[:1] not in ("'", '"'):
        raise UserError(f"override '{text}': YAML ends at ' #'; quote the value")
    try:
        return parts, parse_value(value)
    except UserError as error:
        raise UserError(f"override '{text}': {error}") from error


def apply_override(layers: Layers, text: str) -> None:
    """Put one override over the layers; one that cannot be applied becomes a problem."""
    try:
        parts, value = parse_override(text)
    except UserError as error:
        layers.problems.append(str(error))
        return
    section: Any = layers.data
    for number, part in enumerate(parts[:-1]):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            where = dotted(parts[: number + 1])
            kind = "a list: give the whole list" if isinstance(section, list) else "not a section"
            layers.problems.append(f"override '{text}': {where} is {kind}")
            return
    nested: Any = value
    for part in reversed(parts):
        nested = {part: nested}

    def origin(path: KeyPath) -> str | None:
        new = path[: len(parts)] == parts or path not in layers.origins
        return f"override {text}" if new else None

    layers.add(nested, origin)
