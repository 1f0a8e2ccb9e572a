"""The licence of the base model, as its own files state it; never a guess."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.small_files import parse_yaml, read_text

_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9][\w .,+()-]{0,119}", re.ASCII)
_URL = re.compile(r"https?://[\w.-]+(/[\w./~%#?=&+-]*)?", re.ASCII)
_FILE = re.compile(r"[\w-][\w.-]{0,119}", re.ASCII)
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


@dataclass(frozen=True, slots=True)
class License:
    """A licence in the hub's terms. `id` is None where it is not known; `stated_in` says who states it."""

    id: str | None = None
    name: str | None = None
    link: str | None = None
    stated_in: str | None = None


def find_license(
    given: str | None, folders: Iterable[Path], *, carried: Iterable[str], base_model: str | None
) -> License:
    """The licence `given`, else that of the README.md or the LICENSE file of the base model.

    `folders` are searched in order; `carried` are the names of the files that lie beside the released model.

    Raises:
        CheckpointError: `given` is not the form of an identifier.
    """
    if given is not None:
        check_license(given)
        return License(given, stated_in="its publisher")
    carried = set(carried)
    folders = list(folders)
    for folder in folders:
        found = _from_card(_front_matter(folder / "README.md"), carried, base_model)
        if found is not None:
            return found
    for name in _FILES:
        if name in carried:
            return License("other", "base-model-license", name, f"the file {name} of the base model")
    return License()


def check_license(given: str) -> None:
    """Refuse what cannot be a licence identifier of the hub. Raises CheckpointError."""
    if not _ID.fullmatch(given):
        raise CheckpointError(
            f"--license {given!r:.80} is not a licence identifier of the hub, such as apache-2.0, mit or other"
        )


def _front_matter(file: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty when there is none or it cannot be read."""
    try:
        content = read_text(file) or ""
        found = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", content, re.DOTALL)
        value = parse_yaml(found[1], file) if found else None
    except CheckpointError:
        return {}  # a card is for people; a broken one only says nothing
    return value if isinstance(value, dict) else {}


def _from_card(card: dict[str, Any], carried: set[str], base_model: str | None) -> License | None:
    value, name, link = card.get("license"), card.get("license_name"), card.get("license_link")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not _ID.fullmatch(value.lower()):
        return None
    if not isinstance(link, str) or not (_URL.fullmatch(link) or _FILE.fullmatch(link)):
        link = None
    elif _FILE.fullmatch(link) and link not in carried:
        link = f"https://huggingface.co/{base_model}/blob/main/{link}" if base_model else None
    return License(
        id=value.lower(),
        name=name if isinstance(name, str) and _NAME.fullmatch(name) else None,
        link=link,
        stated_in="the base model's card",
    )
