"""Where a NeMo-RL run goes on: its checkpoints and records made fit for `setup`, which takes the highest step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import fsync_dir
from nemo_thinkprune.training.checkpoint_files import (
    WEIGHTS,
    Checkpoint,
    all_checkpoints,
    remove_stale,
    training_info,
    verify_checkpoint,
    written_by_nemo_rl,
)
from nemo_thinkprune.training.manifest import MANIFEST
from nemo_thinkprune.training.metrics import response_metrics
from nemo_thinkprune.training.run_folder import METRICS, ROLLOUTS, RunFolder

# Written after the weights; `setup` reads it.
DATA_LOADER = "train_dataloader.pt"


def prepare(
    run_dir: Path, checkpoints: Path, *, limit: int, group_size: int, note: Callable[[str], None]
) -> int:
    """The step NeMo-RL goes on after (0: none), with everything newer or half-written out of its way.

    NeMo-RL resumes from the highest `step_N` whatever is in it, and writes a checkpoint into a `tmp_step_N` that a
    killed run may have left.  Damaged checkpoints are renamed to `damaged_step_N`, and `note` is told.

    Args:
        run_dir: the run folder.
        checkpoints: NeMo-RL's checkpoint_dir.
        limit: longest response in tokens, for a row that is written belatedly.
        group_size: responses to a prompt, likewise.
        note: takes a sentence for the user.

    Raises:
        UserError: The local engine wrote the newest checkpoint: NeMo-RL cannot read its optimizer and position.
    """
    remove_stale(checkpoints)
    step = 0
    for found in all_checkpoints(checkpoints):
        _refuse_if_local(found.path)
        problems = _problems(found.path)
        if not problems:
            step = found.step
            break
        moved = _set_aside(found)
        note(f"checkpoint {found.path.name} is not whole and is now {moved.name}: {'; '.join(problems)}")
    RunFolder(run_dir, write=True).truncate_after(step)
    if step > 0:
        _complete(run_dir, step, limit=limit, group_size=group_size)
    return step


def _problems(path: Path) -> list[str]:
    problems = verify_checkpoint(path, require_manifest=False)
    if not (path / DATA_LOADER).is_file():
        problems.append(f"{DATA_LOADER} is missing")
    return problems


def refuse_foreign(checkpoints: Path) -> None:
    """Refuse a folder of checkpoints whose newest one the local engine wrote.

    Raises:
        UserError: saying how to go on.
    """
    for found in all_checkpoints(checkpoints)[:1]:
        _refuse_if_local(found.path)


def _refuse_if_local(path: Path) -> None:
    if (path / MANIFEST).exists() or (training_info(path) and not written_by_nemo_rl(path)):
        raise UserError(
            f"{path} was written by the local engine, and NeMo-RL cannot resume it: continue with --engine local, or "
            f"start from its weights in another --run-dir with policy.pretrained_checkpoint.path={path / WEIGHTS}"
        )


def _set_aside(found: Checkpoint) -> Path:
    name = f"damaged_{found.path.name}"
    taken = sum(1 for _ in found.path.parent.glob(f"{name}*"))
    moved = found.path.with_name(f"{name}_{taken + 1}" if taken else name)
    os.rename(found.path, moved)
    fsync_dir(moved.parent)
    return moved


def _complete(run_dir: Path, step: int, *, limit: int, group_size: int) -> None:
    """Write the row of a step whose run was killed behind its checkpoint: what its responses still tell."""
    if any(row["step"] == step and "limit" in row for row in _rows(run_dir / METRICS)):
        return
    responses = _rows(run_dir / ROLLOUTS / f"step_{step}.jsonl")
    counted = response_metrics(responses, group_size=group_size) if responses else {}
    RunFolder(run_dir, write=True).write_metrics(step, {"limit": limit, **counted})


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `truncate_after` has gone over, or that was written in one piece."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines()]
