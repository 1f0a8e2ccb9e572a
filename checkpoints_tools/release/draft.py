"""A release's card: drafted from the run, the export and the user's options, and later renewed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools.copying.disk import write_error
from checkpoints_tools.copying.files import sync_file
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.proof.manifest import Manifest
from checkpoints_tools.release.card_usage import model_line
from checkpoints_tools.release.license import find_license
from checkpoints_tools.release.model_card import CARD_FILE, CardFacts, is_unedited, model_card
from checkpoints_tools.release.run_facts import RunFacts, base_model_id
from checkpoints_tools.small_files import read_text


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What the user says where files do not: hub id of the base, identifier of the licence, title of the card."""

    base_model: str | None = None
    license: str | None = None
    title: str | None = None


def card_facts(
    run: RunFacts,
    options: CardOptions,
    *,
    out: Path,
    base: Path | None,
    repo: str | None,
    config: ModelConfig,
    carried: Iterable[str],
    manifest: Manifest,
) -> CardFacts:
    """All that the card of the release `out` states. `carried`: names of the files beside the weights."""
    base_model = options.base_model or run.base_model
    if base_model is None and base is not None:
        base_model = base_model_id(str(base.resolve()))
    folders = [folder for folder in (base, run.base_folder) if folder is not None]
    license = find_license(options.license, folders, carried=carried, base_model=base_model)
    title = options.title or (repo or Path(os.path.abspath(out)).name).rpartition("/")[2]
    return CardFacts(title, repo, base_model, license, run, config, manifest)


def unknown(card: CardFacts) -> list[str]:
    """What the card cannot state, and what would tell it, a sentence each."""
    missing = []
    if card.base_model is None:
        missing.append("the base model is not known: give --base-model ID")
    if card.license.id is None:
        missing.append("the licence is not known: give --license ID")
    if card.run.recipe is None:
        missing.append("the recipe is not known: no config.yaml is with the checkpoint")
    if card.run.results is None or card.run.results.this is None:
        missing.append("no results: no summary.json of the run holds this checkpoint")
    return missing


def renew_card(out: Path, facts: CardFacts) -> bool:
    """Bring the card in `out` up to `facts`; False where it was edited, and kept.

    Of an edited card only the line is replaced that says where to load the model from, if nobody touched it and
    the model's id on the hub is known by now. A card that was removed is made anew.

    Raises:
        CheckpointError: The card cannot be read or written.
    """
    file = out / CARD_FILE
    found = read_text(file)
    card = model_card(facts)
    edited = found is not None and not is_unedited(found)
    if found is not None and edited:
        line = rf"^{re.escape(model_line(None))}(?=\r?$)"
        card = re.sub(line, lambda _: model_line(facts.repo), found, flags=re.MULTILINE)
    if card != found:
        _replace(file, card.encode())
    return not edited


def _replace(file: Path, data: bytes) -> None:
    aside = file.with_name(f".{file.name}.partial")
    try:
        aside.unlink(missing_ok=True)
        with open(aside, "xb") as stream:
            stream.write(data)
        sync_file(aside)
        os.replace(aside, file)
    except OSError as error:
        raise write_error(file, error) from error
    sync_file(file.parent)
