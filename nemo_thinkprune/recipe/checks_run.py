"""Checks of where a run writes and of which checkpoints it keeps; for both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from nemo_thinkprune.recipe.schema import Recipe

_LOGS = "logs"
# What a run folder holds beside checkpoints and logs (training/run_folder.py, rounds/, reporting/).
_TAKEN = frozenset(
    {
        *(
            "JOB.json",
            "config.yaml",
            "decision.json",
            "environment.json",
            "eval",
            "ledger.jsonl",
            "metrics.jsonl",
        ),
        *("model", "python", "report.html", "rollouts", "summary.json"),
    }
)


def check_run_folder(recipe: Recipe) -> Iterator[str]:
    """Yield a message where checkpoints or logs would be outside the run folder, or in the place of its files."""
    checkpoints, logs = recipe.checkpointing.checkpoint_dir, recipe.logger.log_dir
    yield from _inside(
        "checkpointing.checkpoint_dir", checkpoints, taken=_TAKEN | {_LOGS}, usual="checkpoints"
    )
    yield from _inside("logger.log_dir", logs, taken=_TAKEN, usual=_LOGS)
    first = PurePath(checkpoints).parts[:1]
    if first not in ((), (_LOGS,)) and first == PurePath(logs).parts[:1]:
        yield (
            f"checkpointing.checkpoint_dir = {checkpoints!r} and logger.log_dir = {logs!r} share a folder; remove one "
            "of the keys"
        )


def _inside(key: str, value: str, *, taken: frozenset[str], usual: str) -> Iterator[str]:
    path = PurePath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts or value.startswith("~") or "\0" in value:
        yield (
            f"{key} = {value!r} is no folder inside the run folder, where it is looked for; give a name such as "
            f"{usual}, and --run-dir for the place of the run"
        )
    elif path.parts[0] in taken:
        yield f"{key} = {value!r}: the run folder has a {path.parts[0]} of its own; give another name such as {usual}"


def check_kept(recipe: Recipe) -> Iterator[str]:
    """Yield a message where the checkpoints kept would be those with the longest responses."""
    checkpointing = recipe.checkpointing
    longest = checkpointing.metric_name == "val:mean_tokens" and checkpointing.higher_is_better
    if longest and checkpointing.keep_top_k is not None:
        yield (
            f"checkpointing.keep_top_k = {checkpointing.keep_top_k} by val:mean_tokens with higher_is_better true "
            "keeps the checkpoints with the longest responses; set checkpointing.higher_is_better=false"
        )
