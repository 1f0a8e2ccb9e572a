"""YAML as recipes need it: safe, with the line of every key, duplicate keys refused, 1e-6 a number.

Plain values follow YAML 1.2's core schema (true and false only, no dates, no base-60 numbers), plus
underscores in numbers; PyYAML's own rules read 1e-6 as text and 12:30:00 as 45000.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from nemo_thinkprune.recipe.errors import UserError

Path = tuple[str | int, ...]

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9][0-9_]*\Z")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z"
)
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_MAX_NODES = 100_000
# No setting needs more, and Python itself refuses to read or print a number of over 4,300 digits.
_MAX_DIGITS = 100
# What PyYAML gives to values without an explicit tag; anything else asks for an object of some class.
_TAGS = frozenset({"map", "seq", "null", "bool", "int", "float", "str", "timestamp", "value", "merge"})


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML mapping: its values, the line of each key path (from 1), and what is wrong with it."""

    data: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def plain_value(text: str) -> Any:
    """Return the value of an unquoted scalar: null, a boolean, a number, or the text itself.

    Raises:
        UserError: a whole number of more than 100 digits.
    """
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    digits = text.replace("_", "")
    if _INT.match(text):
        if len(digits) > _MAX_DIGITS:
            raise UserError(f"a whole number of {len(digits)} digits is too large; quote it if it is text")
        return int(digits)
    if _FLOAT.match(text):
        return float(digits)
    if _SPECIAL.match(text):
        return float(text.replace(".", "").lower())
    return text


def parse_mapping(text: str) -> Document:
    """Parse a YAML document that is a mapping; an empty one is an empty mapping.

    Duplicate keys, keys that are not text, and merge keys are collected in `problems`.

    Raises:
        UserError: not YAML at all, not a mapping, or a document that contains itself.
    """
    node = _compose(text)
    if node is None:
        return Document({})
    if not isinstance(node, yaml.MappingNode):
        raise UserError("line 1: expected keys and values")
    document = Document({})
    document.data.update(_Builder(document).mapping(node, ()))
    return document


def parse_value(text: str) -> Any:
    """Parse one YAML value, such as 1e-6, [1, 2], {a: b}, null or 'text'.

    Raises:
        UserError: not YAML, a duplicate key, or no value at all.
    """
    node = _compose(text)
    if node is None:
        raise UserError("no value: write null for none, or quote the text")
    document = Document({})
    value = _Builder(document).value(node, ())
    if document.problems:
        raise UserError(document.problems[0][1])
    return value


def _compose(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{line}not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"not YAML: {error}") from error
    except RecursionError as error:
        raise UserError("not YAML: nested too deeply") from error


def _scalar(node: yaml.ScalarNode) -> Any:
    try:
        return plain_value(node.value)
    except UserError as error:
        raise UserError(f"line {node.start_mark.line + 1}: {error}") from error


@dataclass(slots=True)
class _Builder:
    """Turns nodes into values and notes lines and problems in `document`."""

    document: Document
    count: int = 0
    open_nodes: set[int] = field(default_factory=set)

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if self.count > _MAX_NODES or id(node) in self.open_nodes:
            raise UserError(f"line {node.start_mark.line + 1}: the document contains itself or is enormous")
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            raise UserError(f"line {node.start_mark.line + 1}: tag '{node.tag}' is not supported")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node) if node.style is None else node.value
        self.open_nodes.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self.open_nodes.discard(id(node))

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        self.open_nodes.add(id(node))
        result: dict[str, Any] = {}
        for key, line, value_node in self._entries(node):
            where = (*path, key)
            if key in result:
                first = self.document.lines[where]
                name = ".".join(map(str, where))
                self.document.problems.append((line, f"'{name}' is given twice (first in line {first})"))
                continue
            self.document.lines[where] = line
            result[key] = self.value(value_node, where)
        return result

    def _entries(self, node: yaml.MappingNode) -> Iterator[tuple[str, int, yaml.Node]]:
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(_scalar(key_node), str):
                self.document.problems.append(
                    (line, f"key '{getattr(key_node, 'value', '?')}' is not a name")
                )
            elif key_node.value == "<<" and key_node.style is None:
                self.document.problems.append((line, "merge keys '<<' are not supported: use 'defaults:'"))
            else:
                yield key_node.value, line, value_node
