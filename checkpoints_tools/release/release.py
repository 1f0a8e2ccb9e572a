"""A release: the exported model, its manifest and its card in one folder, and that folder on the hub."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools.convert import Result, default_threads, export_model
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_folder import DEFAULT_SHARD_BYTES
from checkpoints_tools.models import open_model
from checkpoints_tools.plans import DType, Plan
from checkpoints_tools.proof.manifest import MANIFEST_FILE, Manifest, read_manifest
from checkpoints_tools.proof.verify import verify
from checkpoints_tools.release.hub import check_push, push
from checkpoints_tools.release.license import check_license, find_license
from checkpoints_tools.release.model_card import CARD_FILE, CardFacts, model_card
from checkpoints_tools.release.run_facts import RunFacts, base_model_id, is_hub_id, read_run_facts


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What the user says where files do not: hub id of the base, identifier of the licence, title of the card."""

    base_model: str | None = None
    license: str | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """A finished release. `export` is None when `out` was there already; `url` is its address on the hub.

    `unknown` tells, a sentence each, what the card could not state; `next_command` is for a shell.
    """

    out: Path
    export: Result | None
    manifest: Manifest
    unknown: tuple[str, ...]
    url: str | None
    next_command: str


def release(
    checkpoint: Path,
    out: Path,
    *,
    base: Path | None = None,
    dtype: DType = "keep",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    threads: int | None = None,
    options: CardOptions | None = None,
    push_to: str | None = None,
    private: bool = False,
) -> Release:
    """Export `checkpoint` as the folder `out`, with manifest and card, and upload it to `push_to` if given.

    With `push_to`, an `out` that an earlier call made is uploaded as it is, once it and the checkpoint are
    verified against its manifest: an upload that failed is taken up again by the same call.

    Raises:
        CheckpointError: Checkpoint, run, option or hub is at fault; nothing unfinished is left at `out`.
    """
    options = options or CardOptions()
    _check_options(options)
    if push_to is not None:
        check_push(push_to)
    facts = read_run_facts(checkpoint)
    if push_to is not None and (out / MANIFEST_FILE).is_file():
        manifest, export = _verified(checkpoint, out, base, dtype, threads or default_threads()), None
        kept = f"{out} was there already and its card is kept: edit {CARD_FILE} to change what it states"
        unknown: tuple[str, ...] = (kept,) if options != CardOptions() else ()
    else:
        title = options.title or (push_to or out.name).rpartition("/")[2]
        draft = _Draft(facts, base, options, title=title, repo=push_to)
        export = export_model(
            checkpoint, out, base=base, dtype=dtype, threads=threads, verify=True, extra_files=draft.files,
            max_shard_bytes=max_shard_bytes,
        )  # fmt: skip
        assert export.manifest is not None  # `verify` makes one
        manifest, unknown = export.manifest, draft.unknown()
    url = push(out, push_to, private=private) if push_to is not None else None
    return Release(out, export, manifest, unknown, url, _next(checkpoint, out, url))


class _Draft:
    """The card before the export: what is known of the run, completed when the export knows the tensors."""

    def __init__(
        self, run: RunFacts, base: Path | None, options: CardOptions, *, title: str, repo: str | None
    ) -> None:
        self._run, self._base, self._options, self._title, self._repo = run, base, options, title, repo
        self._written: CardFacts | None = None

    def files(self, plan: Plan, manifest: Manifest | None) -> Mapping[str, bytes]:
        """The files that the release adds to an export."""
        assert manifest is not None  # a release is always verified
        run, options = self._run, self._options
        base_model = options.base_model or run.base_model
        if base_model is None and self._base is not None:
            base_model = base_model_id(str(self._base.resolve()))
        folders = [f for f in (self._base, run.base_folder) if f is not None]
        license = find_license(options.license, folders, carried=plan.carried, base_model=base_model)
        self._written = CardFacts(
            self._title, self._repo, base_model, license, run, plan.source.config, manifest
        )
        return {CARD_FILE: model_card(self._written).encode()}

    def unknown(self) -> tuple[str, ...]:
        """What the card could not state, and what would tell it."""
        card = self._written
        assert card is not None
        missing = []
        if card.base_model is None:
            missing.append("the base model is not known: give --base-model ID")
        if card.license.id is None:
            missing.append(
                "the licence is not known: give --license ID, or --base with the base model's README.md"
            )
        if self._run.recipe is None:
            missing.append("the recipe is not known: there is no config.yaml with the checkpoint")
        if self._run.results is None or self._run.results.this is None:
            missing.append("this checkpoint was not measured: its run's summary.json does not hold it")
        return tuple(missing)


def _check_options(options: CardOptions) -> None:
    if options.base_model is not None and not is_hub_id(options.base_model):
        raise CheckpointError(
            f"--base-model {options.base_model!r:.120} is not a hub id such as Qwen/QwQ-32B"
        )
    if options.license is not None:
        check_license(options.license)


def _verified(checkpoint: Path, out: Path, base: Path | None, dtype: DType, threads: int) -> Manifest:
    """The manifest of `out`, once the weights there and those of the checkpoint are what it says."""
    manifest = read_manifest(out)
    if manifest.dtype_policy != dtype:
        raise CheckpointError(
            f"{out} was made with --dtype {manifest.dtype_policy}: give that, or remove it and run the same "
            "command again"
        )
    models = open_model(checkpoint, base=base), open_model(out)
    result = verify(*models, threads=threads, as_dtype=dtype)
    if result.same and result.b.digest == manifest.digest:
        return manifest
    names = ", ".join(finding.difference.name for finding in result.findings[:3])
    what = (
        f"differs from {checkpoint} in {names}" if names else f"does not verify against its {MANIFEST_FILE}"
    )
    raise CheckpointError(f"{out} {what}, and is not uploaded; remove it and run the same command again")


def _next(checkpoint: Path, out: Path, url: str | None) -> str:
    if url is not None:
        return f"thinkprune-ckpt verify {shlex.quote(str(checkpoint))} DOWNLOADED_COPY"
    return f"thinkprune-ckpt release {shlex.quote(str(checkpoint))} {shlex.quote(str(out))} --push ORGANISATION/MODEL"
