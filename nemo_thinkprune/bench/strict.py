"""Dataclasses as JSON and back: what is not exactly as declared is refused, with the place and the nearest name."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from nemo_thinkprune.recipe.errors import UserError

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


def encode(value: Any) -> Any:
    """A dataclass as JSON values, in the order of its fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return [encode(item) for item in value] if isinstance(value, list | tuple) else value


def to_text(value: Any) -> str:
    """A dataclass as JSON text.

    Raises:
        ValueError: It holds a number that is not finite.
    """
    return json.dumps(encode(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def parse(text: str) -> Any:
    """JSON values of a text without NaN, infinities or a key given twice.

    Raises:
        UserError: It is no such JSON, as when it was cut short.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is no whole JSON ({error})") from None


def decode(kind: Any, value: Any, place: str = "") -> Any:
    """The value of a declared type that JSON values stand for.

    Raises:
        UserError: Something is missing, unknown or of another type; names its place.
    """
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _decode_choice(get_args(kind), value, place)
    if is_dataclass(kind) and isinstance(kind, type):
        return _decode_fields(kind, _expect(dict, value, place, "a section"), place)
    if origin is dict:
        section = _expect(dict, value, place, "a section")
        return {key: decode(get_args(kind)[1], item, _inside(place, key)) for key, item in section.items()}
    if origin is tuple:
        items = _expect(list, value, place, "a list")
        return tuple(decode(get_args(kind)[0], item, f"{place}[{i}]") for i, item in enumerate(items))
    return _decode_plain(kind, value, place)


def _decode_fields(kind: type, section: Mapping[str, Any], place: str) -> Any:
    hints = get_type_hints(kind)
    for name in section:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{_inside(place, name)}: unknown key{hint}")
    for name in hints:
        if name not in section:
            raise UserError(f"{_inside(place, name)} is missing")
    return kind(**{name: decode(hint, section[name], _inside(place, name)) for name, hint in hints.items()})


def _decode_choice(choices: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and NoneType in choices:
        return None
    return decode(next(choice for choice in choices if choice is not NoneType), value, place)


def _decode_plain(kind: type, value: Any, place: str) -> Any:
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{place or 'it'} is {_shown(value)}, not {_NAMES[kind]}")
    return value


def _expect(kind: type, value: Any, place: str, name: str) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"{place or 'it'} is {_shown(value)}, not {name}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    section = dict(pairs)
    if len(section) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)} stands twice")
    return section
