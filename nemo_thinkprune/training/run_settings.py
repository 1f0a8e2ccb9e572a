"""The settings a run folder was begun with: a run is continued with the same ones or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import dump_yaml
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.training.job import JOB_FILE, Job, job_settings

CONFIG_FILE = "config.yaml"

# Keys (or whole sections) that say how a run is recorded, watched or how long it lasts, not what a step does.
FREE_KEYS = (
    "logger",
    "checkpointing.enabled",
    "checkpointing.save_period",
    "checkpointing.keep_top_k",
    "checkpointing.metric_name",
    "checkpointing.higher_is_better",
    "checkpointing.checkpoint_must_save_by",
    "grpo.max_num_steps",
    "grpo.max_num_epochs",
    "thinkprune.runtime.stall_timeout_s",
    "thinkprune.scoring.workers",
    "thinkprune.control",
    "thinkprune.limits",
    "thinkprune.selection",
    "thinkprune.report_data",
    "thinkprune.warmup.max_extensions",
    "thinkprune.warmup.target_accuracy",
)
_JOB_KEYS = ("kind", "model", "init_weights", "limit")
_MISSING = "nothing"


def record_settings(job: Job) -> None:
    """Write config.yaml and JOB.json into the run folder, after comparing them with those of the run so far.

    Raises:
        UserError: as `refuse_other_settings`.
    """
    refuse_other_settings(job)
    write_atomic(job.run_dir / CONFIG_FILE, dump_yaml(job.recipe))
    job.write(job.run_dir / JOB_FILE)


def refuse_other_settings(job: Job) -> None:
    """Compare a job with what its run folder was begun with; nothing to say when that is new.

    Raises:
        UserError: The folder holds a run with other settings, the message names the keys with both values; or
            its records are damaged.
    """
    folder = job.run_dir
    problems = recipe_changes(folder, job.recipe)
    if (folder / JOB_FILE).exists():
        earlier, now = job_settings(Job.read(folder / JOB_FILE)), job_settings(job)
        problems += [
            f"{key}: was {earlier[key]}, is {now[key]}" for key in _JOB_KEYS if earlier[key] != now[key]
        ]
    raise_changes(folder, problems)


def recipe_changes(folder: Path, recipe: Recipe) -> list[str]:
    """The keys in which a recipe differs from config.yaml of a run folder, as `changed_settings`.

    Raises:
        UserError: config.yaml is damaged.
    """
    file = folder / CONFIG_FILE
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _damaged(file) from error
    if not isinstance(before, dict):
        raise _damaged(file)
    return changed_settings(before, yaml.safe_load(dump_yaml(recipe)))


def raise_changes(folder: Path, problems: list[str]) -> None:
    """Raise a UserError that lists the changes, if there are any."""
    if problems:
        listed = "\n".join(f"  {line}" for line in problems)
        raise UserError(
            f"{folder} holds a run with other settings:\n{listed}\n"
            "give the old values to continue it, or use another folder for the new ones"
        )


def _damaged(file: Path) -> UserError:
    return UserError(
        f"{file} is damaged, so nobody can tell whether this run may be continued with these settings: restore "
        f"it from a checkpoint's {CONFIG_FILE}, or use another folder"
    )


def changed_settings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The keys that differ in a way that changes results, each as "key: was A, is B"."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return [
        f"{key}: was {old.get(key, _MISSING)}, is {new.get(key, _MISSING)}"
        for key in sorted(old.keys() | new.keys())
        if not _is_free(key) and old.get(key, _MISSING) != new.get(key, _MISSING)
    ]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and their values; lists are values."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
