"""Where a NeMo-RL run goes on: its checkpoints and records made fit for `setup`, which takes the highest step."""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.read import read_index
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import fsync_dir
from nemo_thinkprune.training.checkpoint_files import (
    TRAINING_INFO,
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
# The asynchronous trainer alone writes it, and reads it where it is.
REPLAY_BUFFER = "replay_buffer.pt"
# What is not sharded; without it NeMo-RL would begin with a new optimizer and not say so.
COMMON = f"{WEIGHTS}/common.pt"

_STEP = re.compile(r"step_\d+")
# How `read_index` words what no reader can do with a folder. Of all else that it refuses NeMo-RL may know more:
# a checkpoint that is only unusual must not be taken away.
_DAMAGE = (" is truncated: ", " is missing; ", " is damaged", " is not a readable pickle: ")
_TOO_LARGE = "too much memory"


def prepare(
    run_dir: Path, checkpoints: Path, *, limit: int, group_size: int, note: Callable[[str], None]
) -> int:
    """The step NeMo-RL goes on after (0: none), with everything newer or half-written out of its way.

    NeMo-RL resumes from the highest `step_N` whatever is in it, and writes a checkpoint into a `tmp_step_N` that a
    killed run may have left.  Damaged checkpoints are renamed to `damaged_step_N`, and `note` is told.

    Files that are missing, cut or empty are found, and so is a checkpoint of another step.  Other bytes inside a
    `.distcp` file than were written are not: NeMo-RL keeps no digests, and reading all weights takes too long.

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
    for path in _no_folders(checkpoints):
        moved = _set_aside(path)
        note(f"{path.name} is no folder, which NeMo-RL would resume from, and is now {moved.name}")
    step = 0
    for found in all_checkpoints(checkpoints):
        _refuse_if_local(found.path)
        problems = _problems(found)
        if not problems:
            step = found.step
            break
        moved = _set_aside(found.path)
        note(f"checkpoint {found.path.name} is not whole and is now {moved.name}: {'; '.join(problems)}")
    RunFolder(run_dir, write=True).truncate_after(step)
    if step > 0:
        _complete(run_dir, step, limit=limit, group_size=group_size)
    return step


def _no_folders(checkpoints: Path) -> list[Path]:
    """What is called `step_N` and is no folder; NeMo-RL goes by the name."""
    if not checkpoints.is_dir():
        return []
    return sorted(path for path in checkpoints.iterdir() if _STEP.fullmatch(path.name) and not path.is_dir())


def _problems(found: Checkpoint) -> list[str]:
    problems = verify_checkpoint(found.path, require_manifest=False)
    problems += _archive_problems(found.path, DATA_LOADER) + _archive_problems(found.path, COMMON)
    if (found.path / REPLAY_BUFFER).exists():
        problems += _archive_problems(found.path, REPLAY_BUFFER)
    return problems or _step_problems(found) + _weights_problems(found.path / WEIGHTS)


def _step_problems(found: Checkpoint) -> list[str]:
    info = training_info(found.path)
    # The asynchronous trainer counts in current_step alone.
    step = info.get("total_steps") or info.get("current_step")
    return [] if step == found.step else [f"{TRAINING_INFO} is of step {step}"]


def _archive_problems(folder: Path, name: str) -> list[str]:
    """What is wrong with a file of torch.save's, whose parts have checksums; nothing in it is unpickled."""
    try:
        with zipfile.ZipFile(folder / name) as archive:
            return [] if archive.testzip() is None else [f"{name} is damaged"]
    except FileNotFoundError:
        return [f"{name} is missing"]
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError):
        return [f"{name} is damaged"]


def _weights_problems(folder: Path) -> list[str]:
    """Files that are shorter than `.metadata` says, or whose records do not begin and end as they should."""
    try:
        json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        read_index(folder)
    except CheckpointError as error:
        what = str(error)
        return [what] if any(sign in what for sign in _DAMAGE) and _TOO_LARGE not in what else []
    except ValueError:
        return [f"{WEIGHTS}/metadata.json is damaged"]
    return []


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


def _set_aside(path: Path) -> Path:
    name = f"damaged_{path.name}"
    taken = sum(1 for _ in path.parent.glob(f"{name}*"))
    moved = path.with_name(f"{name}_{taken + 1}" if taken else name)
    os.rename(path, moved)
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
