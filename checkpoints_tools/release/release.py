"""A release: the exported model, its manifest and its card in one folder, and that folder on the hub."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from checkpoints_tools.convert import Result, default_threads, export_model
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_folder import DEFAULT_SHARD_BYTES, carried_files
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.models import open_model
from checkpoints_tools.plans import DType, Plan
from checkpoints_tools.proof.manifest import MANIFEST_FILE, Manifest, read_manifest
from checkpoints_tools.proof.verify import verify
from checkpoints_tools.release.draft import CardOptions, card_facts, renew_card, unknown
from checkpoints_tools.release.hub import check_push, push
from checkpoints_tools.release.license import check_license
from checkpoints_tools.release.model_card import CARD_FILE, model_card
from checkpoints_tools.release.notes import carried_notes
from checkpoints_tools.release.run_facts import is_hub_id, read_run_facts


@dataclass(frozen=True, slots=True)
class Request:
    """What to release, and how.

    `base` is as `open_checkpoint` takes it, `push_to` the repository to upload to; `private` counts for a new one.
    """

    checkpoint: Path
    out: Path
    base: Path | None = None
    dtype: DType = "keep"
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    options: CardOptions = field(default_factory=CardOptions)
    push_to: str | None = None
    private: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """A finished release. `export` is None when `out` was there already; `url` is its address on the hub.

    `notes` tell, a sentence each, what the card could not state and what to look at before others see the
    folder; `next_command` is for a shell.
    """

    out: Path
    export: Result | None
    manifest: Manifest
    notes: tuple[str, ...]
    url: str | None
    next_command: str


def release(
    request: Request,
    *,
    threads: int | None = None,
    on_made: Callable[[Release], None] = lambda _: None,
) -> Release:
    """Export the checkpoint as the folder `out`, with manifest and card, and upload it to `push_to` if given.

    An `out` that an earlier call (or an export) made is not made again: once it and the checkpoint are verified
    against its manifest, its card is renewed, unless it was edited, and it is uploaded. So an upload that failed
    is taken up by the same request. `on_made` is told of the release ahead of the upload.

    Raises:
        CheckpointError: Checkpoint, run, option or hub is at fault; nothing unfinished is left at `out`.
    """
    _check_options(request.options)
    if request.push_to is not None:
        check_push(request.push_to)
    if (request.out / MANIFEST_FILE).is_file():
        made = _take_up(request, threads or default_threads())
    else:
        made = _make(request, threads)
    on_made(made)
    if request.push_to is None:
        return made
    url = push(request.out, request.push_to, private=request.private)
    return replace(made, url=url, next_command=_verify_command(request))


def _make(request: Request, threads: int | None) -> Release:
    run = read_run_facts(request.checkpoint)
    about = partial(
        card_facts, run, request.options, out=request.out, base=request.base, repo=request.push_to
    )

    def card(plan: Plan, manifest: Manifest | None) -> Mapping[str, bytes]:
        assert manifest is not None  # a release is always verified
        facts = about(config=plan.source.config, carried=plan.carried, manifest=manifest)
        return {CARD_FILE: model_card(facts).encode()}

    export = export_model(
        request.checkpoint, request.out, base=request.base, dtype=request.dtype, threads=threads, verify=True,
        extra_files=card, max_shard_bytes=request.max_shard_bytes,
    )  # fmt: skip
    plan, manifest = export.plan, export.manifest
    assert manifest is not None
    facts = about(config=plan.source.config, carried=plan.carried, manifest=manifest)
    notes = (*unknown(facts), *_carried_notes(request.out, manifest))
    return Release(request.out, export, manifest, notes, None, _push_command(request))


def _take_up(request: Request, threads: int) -> Release:
    """The release that lies in `out`, with a card for this request."""
    out, run = request.out, read_run_facts(request.checkpoint)
    manifest, config = _verified(request, threads)
    facts = card_facts(
        run, request.options, out=out, base=request.base, repo=request.push_to, config=config,
        carried=[file.name for file in carried_files(out)], manifest=manifest,
    )  # fmt: skip
    kept = [f"{out / CARD_FILE} was edited and is kept; remove it to get a new one"]
    notes = unknown(facts) if renew_card(out, facts) else kept
    notes += _carried_notes(out, manifest)
    return Release(out, None, manifest, tuple(notes), None, _push_command(request))


def _carried_notes(out: Path, manifest: Manifest) -> list[str]:
    return carried_notes({tensor.dtype for tensor in manifest.tensors.values()}, carried_files(out))


def _check_options(options: CardOptions) -> None:
    if options.base_model is not None and not is_hub_id(options.base_model):
        raise CheckpointError(
            f"--base-model {options.base_model!r:.120} is not a hub id such as Qwen/QwQ-32B"
        )
    if options.license is not None:
        check_license(options.license)


def _verified(request: Request, threads: int) -> tuple[Manifest, ModelConfig]:
    """Manifest and configuration of `out`, once the weights there and those of the checkpoint are what it says."""
    out, checkpoint, dtype = request.out, request.checkpoint, request.dtype
    manifest = read_manifest(out)
    if manifest.dtype_policy != dtype:
        raise CheckpointError(
            f"{out} was made with --dtype {manifest.dtype_policy}: give that, or remove it and run the same "
            "command again"
        )
    model, released = open_model(checkpoint, base=request.base), open_model(out)
    if released.format != "huggingface":
        raise CheckpointError(f"{out} holds a checkpoint, not a release; choose another name")
    result = verify(model, released, threads=threads, as_dtype=dtype)
    if result.same and result.b.digest == manifest.digest:
        return manifest, released.config
    names = ", ".join(finding.difference.name for finding in result.findings[:3])
    what = (
        f"differs from {checkpoint} in {names}" if names else f"does not verify against its {MANIFEST_FILE}"
    )
    raise CheckpointError(f"{out} {what}, and is left as it is; remove it and run the same command again")


def _push_command(request: Request) -> str:
    """The command that uploads the release, with all that was asked for."""
    options = request.options
    size = request.max_shard_bytes
    words = [
        *_source_options(request),
        *_option("--base-model", options.base_model),
        *_option("--license", options.license),
        *_option("--title", options.title),
        *_option("--max-shard-size", None if size == DEFAULT_SHARD_BYTES else _size(size)),
        *(["--private"] if request.private else []),
        *_option("--push", request.push_to or "ORGANISATION/MODEL"),
    ]
    return shlex.join(["thinkprune-ckpt", "release", str(request.checkpoint), str(request.out), *words])


def _verify_command(request: Request) -> str:
    words = ["thinkprune-ckpt", "verify", str(request.checkpoint), "DOWNLOADED_COPY"]
    return shlex.join([*words, *_source_options(request)])


def _source_options(request: Request) -> list[str]:
    dtype = None if request.dtype == "keep" else request.dtype
    return [*_option("--base", request.base), *_option("--dtype", dtype)]


def _option(flag: str, value: str | Path | None) -> list[str]:
    # As one word, so that a value may begin with a dash.
    return [] if value is None else [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def _size(nbytes: int) -> str:
    units = (("GB", 10**9), ("MB", 10**6), ("KB", 10**3))
    return next((f"{nbytes // unit}{name}" for name, unit in units if nbytes % unit == 0), str(nbytes))
