"""`${a.b.c}` references in recipes, and NeMo-RL's functions `${mul:a,b}`, `${div:a,b}`, `${max:a,b}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from nemo_thinkprune.recipe.errors import UserError

_MAX_DEPTH = 32
_LARGEST = 10**100  # the bound on written numbers


def _divide(left: float, right: float) -> float:
    if right == 0:
        raise UserError("division by zero")
    return left / right


FUNCTIONS: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {"mul": lambda left, right: left * right, "div": _divide, "max": max}
)


def has_reference(text: str) -> bool:
    """Return whether `text` holds a `${...}`."""
    return "${" in text


def interpolate(text: str, get: Callable[[str], Any], scalar: Callable[[str], Any], *, depth: int = 0) -> Any:
    """Return `text` with every `${...}` replaced by its value.

    A text that is one reference keeps the type of the value; otherwise the values are joined as text.

    Args:
        text: such as "${policy.model_name}", "${mul:${a.b}, 4}" or "runs/${logger.wandb.name}".
        get: returns the value at a dotted path, or raises UserError.
        scalar: reads a plain value such as 4, 1e-6 or true as YAML does.
        depth: nesting so far.

    Raises:
        UserError: unbalanced braces, an unknown function, a wrong number or type of arguments, or from `get`.
    """
    if depth > _MAX_DEPTH:
        raise UserError(f"references are nested deeper than {_MAX_DEPTH}")
    parts: list[Any] = []
    position = 0
    while (start := text.find("${", position)) >= 0:
        end = _closing_brace(text, start)
        if start > position:
            parts.append(text[position:start])
        parts.append(_value(text[start + 2 : end], get, scalar, depth))
        position = end + 1
    if position < len(text):
        parts.append(text[position:])
    return parts[0] if len(parts) == 1 else "".join(str(part) for part in parts)


def _closing_brace(text: str, start: int) -> int:
    """Return the index of the brace that closes the `${` at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text.startswith("${", index):
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    raise UserError(f"'{text}' lacks a closing brace")


def _value(body: str, get: Callable[[str], Any], scalar: Callable[[str], Any], depth: int) -> Any:
    """Return the value of what stands between the braces."""
    name, colon, arguments = body.partition(":")
    name = name.strip()
    if not colon or has_reference(name):
        path = str(interpolate(body, get, scalar, depth=depth + 1)).strip()
        return get(_checked_path(path))
    if name not in FUNCTIONS:
        hint = " (environment variables are not read)" if name.startswith("oc.env") else ""
        raise UserError(f"unknown function '{name}' in '${{{body}}}'{hint}: there are mul, div and max")
    values = [
        interpolate(part, get, scalar, depth=depth + 1) if has_reference(part) else scalar(part)
        for part in _split_arguments(arguments)
    ]
    if len(values) != 2 or not all(_is_number(value) for value in values):
        raise UserError(f"'${{{body}}}' needs two numbers, got {', '.join(map(repr, values))}")
    try:
        result = FUNCTIONS[name](*values)
    except OverflowError:
        raise UserError(f"'${{{body}}}' is too large a number") from None
    if isinstance(result, int) and abs(result) > _LARGEST:
        raise UserError(f"'${{{body}}}' is too large a number")
    return result


def _checked_path(path: str) -> str:
    """Return `path` with `[0]` written as `.0`."""
    if path.startswith("."):
        raise UserError(f"'${{{path}}}' is relative: write the full path")
    plain = path.replace("[", ".").replace("]", "")
    if not all(plain.split(".")):
        raise UserError(f"'${{{path}}}' is not a path of keys")
    return plain


def _split_arguments(text: str) -> list[str]:
    """Split at the commas outside of nested braces."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
