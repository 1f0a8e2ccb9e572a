"""From what was written to a full recipe: `${...}` references resolved, derived defaults filled in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nemo_thinkprune.recipe.base import Section
from nemo_thinkprune.recipe.derived import DERIVED
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.interpolate import has_reference, interpolate
from nemo_thinkprune.recipe.keys import KeyPath, default_value, dotted, fields_of, subsection
from nemo_thinkprune.recipe.yaml_file import plain_value

Problem = tuple[KeyPath, str]


def complete(data: Mapping[str, Any], schema: type[Section]) -> tuple[dict[str, Any], list[Problem]]:
    """Return a copy of `data` with references resolved and derived values filled in, and what went wrong.

    A value that cannot be resolved is left as it was and reported; a derived value whose source is wrong is
    left out silently, since the source itself fails validation.
    """
    completion = _Completion(data, schema)
    result, problems = completion.resolve_all()
    for key, info in fields_of(schema).items():
        if info.is_required() and subsection(info.annotation):
            result.setdefault(key, {})
    for target in DERIVED:
        path = tuple(target.split("."))
        section = _section_for(result, path[:-1])
        if section is None or path[-1] in section:
            continue
        try:
            value = completion.get(target)
        except (UserError, TypeError, LookupError, RecursionError):
            continue
        section[path[-1]] = copy.deepcopy(value)
    return result, problems


def _section_for(data: dict[str, Any], path: KeyPath) -> dict[str, Any] | None:
    """Return the mapping at `path`, made where missing; None when something else stands in the way."""
    section: Any = data
    for part in path:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            return None
    return section


class _Completion:
    """Looks values up in what was written, else in the derived rules, else in the schema's defaults."""

    def __init__(self, data: Mapping[str, Any], schema: type[Section]) -> None:
        self._data = data
        self._schema = schema
        self._open: list[str] = []

    def resolve_all(self) -> tuple[dict[str, Any], list[Problem]]:
        """Return the written values with references resolved."""
        problems: list[Problem] = []
        return self._resolve_tree(self._data, (), problems), problems

    def _resolve_tree(self, value: Any, path: KeyPath, problems: list[Problem]) -> Any:
        if isinstance(value, Mapping):
            return {key: self._resolve_tree(item, (*path, key), problems) for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolve_tree(item, (*path, index), problems) for index, item in enumerate(value)]
        try:
            return self._resolve(value, dotted(path))
        except UserError as error:
            problems.append((path, str(error)))
            return value

    def _resolve(self, value: Any, name: str) -> Any:
        """Return a written value with its references resolved; `name` is its path, for cycles."""
        if isinstance(value, Mapping):
            return {key: self._resolve(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolve(item, f"{name}.{index}") for index, item in enumerate(value)]
        if not isinstance(value, str) or not has_reference(value):
            return value
        if name in self._open:
            raise UserError(f"refers to itself: {' -> '.join([*self._open, name])}")
        self._open.append(name)
        try:
            return interpolate(value, self.get, plain_value)
        finally:
            self._open.pop()

    def has(self, path: str) -> bool:
        """Return whether the key was written."""
        try:
            self._written(path)
        except KeyError:
            return False
        return True

    def get(self, path: str) -> Any:
        """Return the value at a dotted path.

        Raises:
            UserError: no such key, a key without value, or a reference that leads back to itself.
        """
        try:
            return self._resolve(self._written(path), path)
        except KeyError:
            pass
        if path in DERIVED:
            return DERIVED[path](self.get, self.has)
        try:
            return default_value(self._schema, tuple(path.split(".")))
        except KeyError:
            raise UserError(f"'${{{path}}}' names a key that does not exist or has no value") from None

    def _written(self, path: str) -> Any:
        value: Any = self._data
        for number, part in enumerate(path.split(".")):
            if isinstance(value, str) and has_reference(value):
                value = self._resolve(value, ".".join(path.split(".")[:number]))
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part in map(str, range(len(value))):
                value = value[int(part)]
            else:
                raise KeyError(path)
        return value
