"""Checkpoint folders in NeMo-RL's layout: ``step_N``, made as ``tmp_step_N``, sealed by a manifest, renamed.

Names beside ``step_N``: ``tmp_step_N`` is being written, ``old_step_N`` is being replaced, ``gone_step_N`` is
being deleted.  At every moment a folder called ``step_N`` is whole, unless something else damaged it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_tools.torch_dist.folders import WEIGHTS_FOLDER
from nemo_thinkprune.recipe.files import fsync_dir
from nemo_thinkprune.training.disk import check_disk_space, disk_errors
from nemo_thinkprune.training.manifest import MANIFEST, Pulse, seal, verify

__all__ = [
    "Checkpoint",
    "all_checkpoints",
    "check_disk_space",
    "complete_checkpoints",
    "newest_valid",
    "prune_checkpoints",
    "publish",
    "remove_stale",
    "training_info",
    "verify_checkpoint",
    "written_by_nemo_rl",
]

TRAINING_INFO = "training_info.json"
WEIGHTS = WEIGHTS_FOLDER / "iter_0000000"

_STEP = re.compile(r"step_(\d+)")
_ASIDE = re.compile(r"(tmp|old|gone)_(step_\d+)")
# What a checkpoint without manifest (NeMo-RL writes none) must at least hold; metadata.json is Megatron's last.
_ESSENTIAL = (TRAINING_INFO, f"{WEIGHTS}/metadata.json", f"{WEIGHTS}/.metadata")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder ``step_N``."""

    step: int
    path: Path


def complete_checkpoints(folder: Path, *, require_manifest: bool = True) -> list[Checkpoint]:
    """The published checkpoints of a run, newest first; their content is not verified.

    Without `require_manifest` folders that NeMo-RL wrote count too.
    """
    marker = MANIFEST if require_manifest else TRAINING_INFO
    return [item for item in all_checkpoints(folder) if (item.path / marker).is_file()]


def verify_checkpoint(path: Path, *, require_manifest: bool = True, pulse: Pulse | None = None) -> list[str]:
    """What is wrong with a checkpoint, naming the files; empty when every byte is as it was written.

    Without `require_manifest` a folder of NeMo-RL's, which has none, need only hold the essential files.  `pulse`
    is called, from several threads, for every part that is read.
    """
    info = training_info(path)
    if require_manifest or (path / MANIFEST).exists() or (info and "total_steps" not in info):
        return verify(path, pulse=pulse)
    problems = [f"{name} is missing" for name in _ESSENTIAL if not (path / name).is_file()]
    problems += [f"{name} is empty" for name in _ESSENTIAL if _is_empty(path / name)]
    return problems or ([] if info else [f"{TRAINING_INFO} is damaged"])


def newest_valid(
    folder: Path,
    *,
    on_refused: Callable[[Path, list[str]], None],
    require_manifest: bool = True,
    pulse: Pulse | None = None,
) -> Path | None:
    """The newest checkpoint that verifies, None when there is none; each refused one is reported with why.

    `require_manifest` and `pulse` as in `verify_checkpoint`.
    """
    for checkpoint in all_checkpoints(folder):
        problems = verify_checkpoint(checkpoint.path, require_manifest=require_manifest, pulse=pulse)
        if not problems:
            return checkpoint.path
        on_refused(checkpoint.path, problems)
    return None


def publish(aside: Path, final: Path, *, pulse: Pulse | None = None) -> None:
    """Seal `aside` and rename it to `final`, replacing what is there; durable when this returns.

    `pulse` as in `verify_checkpoint`.

    Raises:
        DiskFull: There is no room for the manifest or the synced data; `final` is as it was.
    """
    with disk_errors(final):
        seal(aside, pulse=pulse)
        replaced = final.with_name(f"old_{final.name}")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(final, replaced)
        os.rename(aside, final)
        fsync_dir(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def remove_stale(folder: Path) -> None:
    """Tidy up after a kill: delete what was being written or deleted, bring back what was being replaced."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        match = _ASIDE.fullmatch(path.name)
        if match is None:
            continue
        final = folder / match[2]
        if match[1] == "old" and not final.exists():
            os.rename(path, final)
        else:
            shutil.rmtree(path)
    fsync_dir(folder)


def prune_checkpoints(
    folder: Path,
    *,
    keep_top_k: int | None,
    metric_name: str | None = None,
    higher_is_better: bool = True,
    keep_steps: Collection[int] = (),
) -> list[int]:
    """Delete all but the latest checkpoint, the best `keep_top_k` and `keep_steps`; gives the deleted steps.

    Best by `metric_name` of training_info.json, a checkpoint without it (or whose file is damaged) last, the
    newer first among equals; by recency when `metric_name` is None.  Only checkpoints with all files in full
    size count and can be deleted, so that a damaged one never takes the place of a whole one.  `keep_top_k`
    None keeps everything.
    """
    if keep_top_k is None:
        return []
    whole = [item for item in complete_checkpoints(folder) if not verify(item.path, digests=False)]
    ranked = sorted(whole, key=lambda item: _rank(item, metric_name, higher_is_better), reverse=True)
    kept = {item.step for item in [*whole[:1], *ranked[:keep_top_k]]} | set(keep_steps)
    dropped = [item for item in whole if item.step not in kept]
    for item in dropped:
        gone = folder / f"gone_{item.path.name}"
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(item.path, gone)
        fsync_dir(folder)
        shutil.rmtree(gone)
    return [item.step for item in dropped]


def training_info(path: Path) -> dict[str, Any]:
    """What training_info.json of a checkpoint says; empty when it is gone or damaged."""
    try:
        info = json.loads((path / TRAINING_INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) else {}


def all_checkpoints(folder: Path) -> list[Checkpoint]:
    """All folders ``step_N``, newest first, whatever is in them."""
    if not folder.is_dir():
        return []
    found = [
        Checkpoint(int(match[1]), path)
        for path in folder.iterdir()
        if path.is_dir() and (match := _STEP.fullmatch(path.name))
    ]
    return sorted(found, key=lambda item: item.step, reverse=True)


def written_by_nemo_rl(path: Path) -> bool:
    """Whether NeMo-RL's trainer wrote a checkpoint, as its training_info.json tells."""
    return "total_steps" in training_info(path)


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _rank(item: Checkpoint, metric_name: str | None, higher_is_better: bool) -> tuple[float, int]:
    if metric_name is None:
        return 0.0, item.step
    value = training_info(item.path).get(metric_name)
    if not isinstance(value, int | float) or value != value:
        return float("-inf"), item.step
    return (value if higher_is_better else -value), item.step
