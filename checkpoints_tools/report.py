"""What the verbs print: results to stdout, each with the command that comes next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints_tools.bridge_files import RUN_CONFIG_FILE, read_run_config, run_config_differences
from checkpoints_tools.convert import Result, default_threads, output_sizes
from checkpoints_tools.copying.disk import free_bytes
from checkpoints_tools.copying.progress import Progress
from checkpoints_tools.errors import CheckpointError, printable
from checkpoints_tools.models import open_model
from checkpoints_tools.plans import DType, Plan
from checkpoints_tools.proof import inspection, inspection_view
from checkpoints_tools.proof.manifest import MANIFEST_FILE, read_manifest
from checkpoints_tools.proof.verify import (
    Verification,
    open_both,
    report_lines,
    to_json,
    verify,
    verify_manifest,
)
from checkpoints_tools.release.notes import carried_notes
from checkpoints_tools.release.release import Release
from checkpoints_tools.torch_dist.folders import WEIGHTS_FOLDER


def say(text: str) -> None:
    """Print lines; a name from a file cannot steer the terminal."""
    print(printable(text, most=len(text)), flush=True)


def converted(result: Result) -> None:
    """A finished conversion: what was made, its digest, what to do next."""
    plan = result.plan
    say(
        f"wrote {plan.out}: {len(plan.tensors)} tensors, {result.nbytes:,} bytes in {len(plan.files)} weight files"
    )
    if result.resumed:
        say(f"  {result.resumed:,} bytes of them were there from an earlier run, and were checked")
    if result.manifest is None:
        say("  not verified (--no-verify), no manifest")
    else:
        say(f"  read back and equal to the source; digest {result.manifest.digest}")
        say(f"  manifest {plan.out / MANIFEST_FILE}")
    if plan.verb == "export" and "tokenizer_config.json" not in plan.carried:
        say("  no tokenizer files lay beside the checkpoint; --base HF_DIR brings them")
    if plan.verb == "export":
        dtypes = {tensor.dtype for tensor in plan.tensors.values()}
        for note in carried_notes(dtypes, plan.carried.values()):
            say(f"  note: {note}")
    if plan.verb == "reshard":
        _carried(plan)
    _warn(plan)
    say(f"next: {_next(result)}")


def _carried(plan: Plan) -> None:
    """What a resharded checkpoint has besides the weights, and what it is not."""
    nbytes = sum(job.nbytes for job in plan.raw_jobs)
    say(
        f"  {len(plan.raw_jobs)} records beside the weights (optimizer state, objects), {nbytes:,} bytes, and "
        f"{len(plan.carried)} files went along unchanged"
    )
    if (plan.root / WEIGHTS_FOLDER).is_dir():
        say(
            f"  it is a folder for a run to start from, not a step to resume from: config.yaml and "
            f"training_info.json stay in {plan.root}"
        )


def _warn(plan: Plan) -> None:
    """Say where the run that saved a checkpoint had another model in mind than config.json."""
    if plan.source.format != "torch_dist":
        return
    try:
        warnings = run_config_differences(read_run_config(plan.source.path) or {}, plan.source.config)
    except CheckpointError as error:  # it is not needed for the tensors
        warnings = [str(error)]
    for warning in warnings:
        say(f"  warning: {warning}")


def _next(result: Result) -> str:
    plan = result.plan
    if result.manifest is None:
        return _shell("verify", plan.source.path, plan.out)
    if plan.verb == "export":
        return f"hf upload REPO {shlex.quote(str(plan.out))}  (or thinkprune-ckpt release, which writes a model card)"
    if not any(name.endswith(RUN_CONFIG_FILE) for name in (*plan.texts, *plan.carried)):
        return _shell("verify", plan.source.path, plan.out)  # Bridge could not start from it
    path = shlex.quote(str(plan.out))
    return f"policy.pretrained_checkpoint={{path: {path}, format: megatron_bridge}} in a NeMo-RL recipe"


def _shell(*words: str | Path) -> str:
    return " ".join(["thinkprune-ckpt", *(shlex.quote(str(word)) for word in words)])


def planned(plan: Plan, *, dtype: DType = "keep", as_json: bool) -> None:
    """A plan: files, bytes, room on the disk. Raises CheckpointError when there is too little room."""
    free = free_bytes(plan.out)
    sizes = output_sizes(plan, dtype=dtype)
    total = sum(sizes.values())
    if as_json:
        facts: Mapping[str, Any] = {
            "verb": plan.verb, "source": str(plan.source.path), "out": str(plan.out), "tensors": len(plan.tensors),
            "bytes": total, "free_bytes": free, "fits": total <= free, "files": dict(sorted(sizes.items())),
        }  # fmt: skip
        say(json.dumps(facts, indent=2))
    else:
        model = f"{plan.source.config.architecture}, {len(plan.tensors)} tensors"
        say(f"{plan.verb} {plan.source.path} ({model}) would write")
        width = max(map(len, sizes))
        for name, nbytes in sorted(sizes.items()):
            say(f"  {name:{width}}  {nbytes:>18,}")
        say(f"{total:,} bytes in {plan.out}; {free:,} bytes are free there")
    if total > free:
        raise CheckpointError(f"{total - free:,} bytes too many for the disk of {plan.out}; free some room")


def verified(
    a: Path,
    b: Path | None,
    manifest: Path | None,
    *,
    base: Path | None,
    dtype: DType,
    threads: int | None,
    as_json: bool,
) -> Verification:
    """Compare a model with another, or with a manifest, and print the answer."""
    threads = threads or default_threads()
    if b is not None:
        first, second = open_both(a, b, base=base)
        total = sum(t.nbytes for model in (first, second) for t in model.tensors.values())
        with Progress(total, "verify") as progress:
            result = verify(first, second, threads=threads, as_dtype=dtype, on_bytes=progress.advance)
    else:
        assert manifest is not None
        stated, first = read_manifest(manifest), open_model(a, base=base, partial=True)
        with Progress(sum(t.nbytes for t in first.tensors.values()), "verify") as progress:
            result = verify_manifest(
                first,
                stated,
                name=str(manifest),
                threads=threads,
                as_dtype=dtype,
                on_bytes=progress.advance,
            )
    say(json.dumps(to_json(result), indent=2) if as_json else "\n".join(report_lines(result)))
    return result


def inspected(path: Path, *, base: Path | None, tensors: bool, as_json: bool) -> None:
    """Show what lies in a folder."""
    found = inspection.inspect(path, base=base)
    if as_json:
        say(json.dumps(inspection.to_json(found), indent=2))
        return
    from rich.console import Console

    inspection_view.render(Console(), found, tensors=tensors)


def released(made: Release) -> None:
    """A release in its folder: size, digest, what the card could not state and what to look at."""
    if made.export is not None:
        size = f"{len(made.export.plan.tensors)} tensors, {made.export.nbytes:,} bytes"
        say(f"wrote {made.out}: {size}, with manifest and model card")
        _warn(made.export.plan)
    else:
        say(f"{made.out} was there already, and holds the same model as the checkpoint")
    say(f"  digest {made.manifest.digest}")
    for sentence in made.notes:
        say(f"  note: {sentence}")


def after_release(made: Release) -> None:
    """Where a release was uploaded to, if it was, and the next command."""
    if made.url is not None:
        say(f"  uploaded: {made.url}")
    say(f"next: {made.next_command}")
