"""Recipes from files, overrides and dicts, with every mistake named in one message."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

import nemo_thinkprune
from nemo_thinkprune.recipe.complete import complete
from nemo_thinkprune.recipe.derived import DERIVED
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_file, is_folder
from nemo_thinkprune.recipe.keys import KeyPath, dotted, unknown_keys
from nemo_thinkprune.recipe.layers import Layers, apply_override, read_layers, shown
from nemo_thinkprune.recipe.schema import Recipe

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number not below {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number not above {le}",
    "too_short": "at least {min_length} entry",
    "literal_error": "one of {expected}",
}


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from a YAML file, or by the name of one that comes with the checkout.

    Args:
        path: a file, or a name such as "thinkprune" of a file in the folder recipes/.
        overrides: "a.b=c" settings that win over the files; values are YAML; the last one for a key wins.

    Raises:
        UserError: naming every unknown key with the nearest valid one, every wrong type, duplicate key and
            unresolved reference, each with file and line.
    """
    return recipe_loader(path)(overrides)


def recipe_loader(path: str | os.PathLike[str]) -> Callable[[Sequence[str]], Recipe]:
    """`load_recipe` for many overrides: the files are read now and once, each call takes overrides.

    Raises:
        UserError: a file that cannot be read; from each call as `load_recipe`.
    """
    file = find_recipe(path)
    read = read_layers(file)

    def load(overrides: Sequence[str]) -> Recipe:
        layers = copy.deepcopy(read)
        for text in overrides:
            apply_override(layers, text)
        return _validated(layers, shown(file))

    return load


def recipe_from_dict(
    data: Mapping[str, Any], overrides: Sequence[str] = (), *, name: str = "the recipe"
) -> Recipe:
    """Return the recipe in `data`, as `to_dict` gave it or as a YAML file would hold it, with overrides.

    Raises:
        UserError: as `load_recipe`, without lines.
    """
    layers = Layers()
    layers.add(data, lambda path: None)
    for text in overrides:
        apply_override(layers, text)
    return _validated(layers, name)


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with the values at some dotted paths replaced, such as {"grpo.seed": 1}.

    Values that once followed from others are fixed by now and do not follow again.

    Raises:
        UserError: an unknown path or a value that the schema refuses.
    """
    data = to_dict(recipe)
    for path, value in values.items():
        section: Any = data
        *parents, last = path.split(".")
        for part in parents:
            if not isinstance(section, dict):
                break
            section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise UserError(f"{path}: unknown key")
        section[last] = value
    return recipe_from_dict(data)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values under NeMo-RL's key names.

    Keys that NeMo-RL does not allow to be null are left out when they have no value.
    """
    return recipe.model_dump()


def dump_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def recipes_folder() -> Path:
    """Return the folder recipes/ of the checkout; it need not exist in an installed package."""
    return Path(nemo_thinkprune.__file__).resolve().parent.parent / "recipes"


def find_recipe(path: str | os.PathLike[str]) -> Path:
    """Return the file of a recipe given by path or by name.

    Raises:
        UserError: neither a file nor a name; the message lists the names.
    """
    file = Path(path)
    if is_file(file) or is_folder(file):
        return file
    if file.parent == Path("."):
        for name in (file.name, f"{file.name}.yaml"):
            if is_file(found := recipes_folder() / name):
                return found
    names = sorted(item.stem for item in recipes_folder().glob("*.yaml"))
    near = difflib.get_close_matches(file.stem, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    known = f" (recipes by name: {', '.join(names)})" if names else ""
    raise UserError(f"no recipe file {_shown_value(str(path))}{hint}{known}")


def _validated(layers: Layers, name: str) -> Recipe:
    """Return the recipe in `layers` or raise with all its problems."""
    found: list[tuple[KeyPath, str]] = list(unknown_keys(layers.data, Recipe))
    data, unresolved = complete(layers.data, Recipe)
    found += unresolved
    for path, _ in unresolved:
        _remove(data, path)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        found += _from_pydantic(error.errors(), layers.data, [path for path, _ in found])
    else:
        if not found and not layers.problems:
            return recipe
    lines = layers.problems + [_line(path, message, layers) for path, message in found]
    count = f"{len(lines)} problems" if len(lines) > 1 else "a problem"
    raise UserError(f"{name} has {count}:\n" + "\n".join(f"  {line}" for line in lines))


def _line(path: KeyPath, message: str, layers: Layers) -> str:
    origin = layers.origin(path)
    return f"{dotted(path)}: {message}" + (f" ({origin})" if origin else "") if path else message


def _remove(data: dict[str, Any], path: KeyPath) -> None:
    """Take an unresolved value out, so that it is not reported a second time; a list goes as a whole."""
    section: Any = data
    for part, following in zip(path, (*path[1:], None), strict=True):
        if following is None or isinstance(section.get(part), list):
            section.pop(part, None)
            return
        section = section[part]


def _from_pydantic(
    errors: Sequence[ErrorDetails], written: Mapping[str, Any], reported: Sequence[KeyPath]
) -> list[tuple[KeyPath, str]]:
    """Return pydantic's errors as key paths and messages, each path once, without those in `reported`."""
    found: dict[KeyPath, str] = {}
    derived: dict[KeyPath, str] = {}
    for error in errors:
        if error["type"] == "extra_forbidden":
            continue
        path, is_written = _key_path(error["loc"], written)
        if any(path[: len(done)] == done for done in reported):
            continue
        target = derived if dotted(path) in DERIVED and not is_written else found
        target.setdefault(path, _message(error))
    # A derived value is wrong only because its source is; the source's own message says more.
    return list((found or (derived if not reported else {})).items())


def _key_path(location: tuple[int | str, ...], written: Any) -> tuple[KeyPath, bool]:
    """Return the key path of a pydantic location, without names of union members, and if it was written."""
    path: list[str | int] = []
    for number, part in enumerate(location):
        if isinstance(written, Mapping):
            if part in written:
                written = written[part]
                path.append(part)
            elif isinstance(part, str):
                # Not written: the rest of the location is plain key names.
                return (*path, *(name for name in location[number:] if isinstance(name, str))), False
        elif isinstance(written, list) and isinstance(part, int) and part < len(written):
            written = written[part]
            path.append(part)
    return tuple(path), True


def _message(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind == "missing":
        return "required, but not given"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind in _BOUNDS:
        expected = _BOUNDS[kind].format(**error["ctx"])
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind]
    else:
        expected = error["msg"]
    return f"expected {expected}, got {_shown_value(error['input'])}"


def _shown_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
