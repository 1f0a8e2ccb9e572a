"""The tree of valid keys, read off the schema: unknown keys, the nearest valid one, and default values."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from nemo_thinkprune.recipe.base import Section

KeyPath = tuple[str | int, ...]
_CLOSE = 0.6


def dotted(path: KeyPath) -> str:
    """Return `path` as a user writes it."""
    return ".".join(str(part) for part in path)


def fields_of(section: type[Section]) -> Mapping[str, FieldInfo]:
    """Return the keys of a section as YAML has them."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def subsection(annotation: Any) -> tuple[str, type[Section]] | None:
    """Return what a field holds: "section", "list" or "mapping" and the section class; None for a value."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        for choice in get_args(annotation):
            if choice is not NoneType and (found := subsection(choice)):
                return found
        return None
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section", annotation
    shape = {list: "list", dict: "mapping"}.get(get_origin(annotation))
    if shape:
        inner = subsection(get_args(annotation)[-1])
        return (shape, inner[1]) if inner and inner[0] == "section" else None
    return None


def walk(section: type[Section], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, FieldInfo]]:
    """Yield every key path below `section` with its field; list positions and free names are left out."""
    for key, info in fields_of(section).items():
        path = (*prefix, key)
        yield path, info
        found = subsection(info.annotation)
        if found and found[0] != "mapping":
            yield from walk(found[1], path)


def unknown_keys(data: Mapping[str, Any], section: type[Section]) -> Iterator[tuple[KeyPath, str]]:
    """Yield each key path of `data` that the schema does not have, with a hint at the nearest valid key."""
    index = [path for path, _ in walk(section)]
    yield from _unknown(data, section, (), index)


def _unknown(
    data: Mapping[str, Any], section: type[Section], prefix: KeyPath, index: list[KeyPath]
) -> Iterator[tuple[KeyPath, str]]:
    known = fields_of(section)
    for key, value in data.items():
        path = (*prefix, key)
        if key not in known:
            yield path, suggestion(key, prefix, list(known), index)
            continue
        found = subsection(known[key].annotation)
        if found:
            for where, inner in _mappings(value, found[0], path):
                yield from _unknown(inner, found[1], where, index)


def _mappings(value: Any, shape: str, path: KeyPath) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Yield the mappings in `value` that are sections, with their paths."""
    if shape == "mapping" and isinstance(value, Mapping):
        yield from (((*path, name), inner) for name, inner in value.items() if isinstance(inner, Mapping))
    elif isinstance(value, Mapping):
        yield path, value
    elif shape == "list" and isinstance(value, list):
        yield from (
            ((*path, number), inner) for number, inner in enumerate(value) if isinstance(inner, Mapping)
        )


def suggestion(key: str, prefix: KeyPath, siblings: list[str], index: list[KeyPath]) -> str:
    """Return what to write instead of the unknown `key` in the section `prefix`.

    A key that is spelt right but stands in the wrong section beats a similar key of this section, unless it
    is as common as `enabled`; then come similar keys of this section, and similar keys anywhere.
    """
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=_CLOSE)
    elsewhere = [path for path in index if path[-1] == key]
    if elsewhere and (len(elsewhere) <= 3 or not near):
        elsewhere.sort(key=lambda path: -_shared(path, prefix))
        places = " or ".join(f"'{dotted(path)}'" for path in elsewhere[:3])
        return f"unknown key; '{key}' belongs at {places}"
    if near:
        return f"unknown key; did you mean '{dotted((*prefix, near[0]))}'?"
    names = difflib.get_close_matches(key, sorted({str(path[-1]) for path in index}), n=1, cutoff=0.75)
    if names:
        places = " or ".join(f"'{dotted(path)}'" for path in index if path[-1] == names[0])
        return f"unknown key; did you mean {places}?"
    where = f"section '{dotted(prefix)}'" if prefix else "the recipe"
    return f"unknown key; {where} has {_listed(siblings)}"


def _shared(left: KeyPath, right: KeyPath) -> int:
    """Return how many leading parts two paths have in common."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def default_value(section: type[Section], path: KeyPath) -> Any:
    """Return the schema's default at `path`: {} for a section.

    Raises:
        KeyError: no such key, or a key without default.
    """
    info: FieldInfo | None = None
    for part in path:
        known = fields_of(section)
        if info is not None and subsection(info.annotation) is None:
            raise KeyError(dotted(path))
        if not isinstance(part, str) or part not in known:
            raise KeyError(dotted(path))
        info = known[part]
        found = subsection(info.annotation)
        if found and found[0] == "section":
            section = found[1]
    if info is None:
        raise KeyError(dotted(path))
    found = subsection(info.annotation)
    if found and found[0] == "section" and (info.is_required() or info.default_factory is not None):
        return {}
    if info.is_required():
        raise KeyError(dotted(path))
    return info.get_default(call_default_factory=True, validated_data={})
