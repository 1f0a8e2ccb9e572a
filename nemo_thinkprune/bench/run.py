"""Run the steps of a benchmark in a run folder that goes again: the recipe's own training, on its own engine."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from checkpoints_tools.hf_config import read_hf_config
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rounds.commands import EngineChoice
from nemo_thinkprune.training.attempts import LOCK_FILE, LOGS, make_run_folder
from nemo_thinkprune.training.console import display
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.models import ready_model
from nemo_thinkprune.training.run_folder import LEDGER, METRICS, ROLLOUTS
from nemo_thinkprune.training.stopping import stop_signals
from nemo_thinkprune.training.supervisor import Event, JobFailed, JobStopped, run_job

Row = dict[str, Any]
ENTRY = "nemo_thinkprune.bench.worker:run"
STOPPED = (
    "stopped as asked; nothing is kept of a benchmark that did not end: the same command starts it again"
)
_FOLDER = ".run_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run: a recipe on an engine, for so many steps."""

    recipe: Recipe
    engine: EngineChoice
    steps: int
    warmup: int
    fixed_length: bool

    @property
    def last_step(self) -> int:
        """The last step of the run, counted from 1."""
        return self.warmup + self.steps

    @property
    def measured(self) -> range:
        """The steps that are measured."""
        return range(self.warmup + 1, self.last_step + 1)


@dataclass(slots=True)
class Records:
    """What a run left: rows of its files by step, and what each rank told of its phases and its device."""

    job: Job
    metrics: dict[int, Row] = field(default_factory=dict)
    rollouts: dict[int, list[Row]] = field(default_factory=dict)
    ledger: dict[int, Row] = field(default_factory=dict)
    uses: dict[int, dict[int, dict[str, Row]]] = field(default_factory=dict)
    devices: list[Row] = field(default_factory=list)

    def listen(self, event: Event) -> None:
        """Keep what a rank tells of its phases (by step and rank) and of its device."""
        if (told := event.extra.get("measured")) is not None:
            self.uses.setdefault(event.step, {}).setdefault(event.rank, {}).update(told)
        if (device := event.extra.get("device")) is not None:
            self.devices.append(device)


def run_steps(plan: Plan, out: Path) -> Records:
    """Run the warm-up and the measured steps in a folder inside `out` that is removed, however it ends.

    Only when a rank failed its logs stay there, until the next benchmark in `out`.

    Raises:
        UserError: as `training.start.train`.
        JobFailed: A rank died or hung.
        JobStopped: SIGTERM or SIGUSR1 came.
    """
    job = _job(plan, out)
    with run_folder(out) as folder:
        records = Records(replace(job, run_dir=folder))
        try:
            with stop_signals() as stop:
                _runner(plan)(records.job, records.listen)
                if stop.is_set():
                    raise JobStopped(None)
        except JobStopped:
            raise JobStopped(None, STOPPED) from None
        _read(records)
    return records


def _job(plan: Plan, out: Path) -> Job:
    """The job: the recipe's model and data, without validation, trackers and more checkpoints than are measured."""
    found = plan.engine.engine(plan.recipe)
    recipe, source = ready_model(_values(plan, plan.recipe), weights=found.weights, check=found.check)
    if plan.fixed_length:
        # an end token that no vocabulary row stands for is never sampled
        never = read_hf_config(Path(source.folder)).vocab_size
        recipe = with_values(recipe, {"policy.generation.stop_token_ids": [never]})
    return Job(
        kind="train",
        run_dir=out,
        recipe=recipe,
        model=source.folder,
        limit=recipe.policy.generation.max_new_tokens,
        init_weights=source.weights,
    )


def _values(plan: Plan, recipe: Recipe) -> Recipe:
    off = ("wandb", "swanlab", "tensorboard", "mlflow")
    return with_values(
        recipe,
        {
            "grpo.max_num_steps": plan.last_step,
            "grpo.max_num_epochs": plan.last_step,
            "grpo.val_period": 0,
            "grpo.val_at_start": False,
            "grpo.val_at_end": False,
            "checkpointing.save_period": 1,
            "checkpointing.keep_top_k": 1,
            "checkpointing.metric_name": None,
            "checkpointing.checkpoint_must_save_by": None,
            **{f"logger.{name}_enabled": False for name in off},
        },
    )


def _runner(plan: Plan) -> Callable[[Job, Callable[[Event], None]], None]:
    if plan.engine.name == "nemo-rl":
        found = plan.engine.engine(plan.recipe)
        return lambda job, listen: found.run(job)

    def local(job: Job, listen: Callable[[Event], None]) -> None:
        with display(f"bench L={job.limit}") as shown:

            def on_event(event: Event) -> None:
                listen(event)
                shown.on_event(event)

            run_job(job, on_event=on_event, entry=ENTRY, worth_saving=False)

    return local


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[Path]:
    """A folder inside `out` for the run; what an earlier benchmark that was killed left there goes first."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    make_run_folder(out)
    _remove_left(out)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=out))
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error.strerror}): give another place") from error
    try:
        yield folder
    except JobFailed:
        _remove_but(folder, LOGS, LOCK_FILE)  # the message names logs
        raise
    except BaseException:
        _remove(folder)
        _remove_empty(new)
        raise
    _remove(folder)


def _remove_left(out: Path) -> None:
    """Remove run folders that no process holds the lock of, and empty ones: of a process killed before its lock."""
    for folder in out.glob(f"{_FOLDER}*"):
        with contextlib.suppress(OSError):
            folder.rmdir()  # one that another benchmark has just made is made again with its lock
        with contextlib.suppress(OSError), open(folder / LOCK_FILE, "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a run folder, its lock file last: what a kill leaves of it can be removed by the next."""
    with contextlib.suppress(OSError):
        _remove_but(folder, LOCK_FILE)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_but(folder: Path, *kept: str) -> None:
    for item in folder.iterdir():
        if item.name in kept:
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that were made for the result, innermost first, as far as nothing is in them."""
    with contextlib.suppress(OSError):
        for folder in folders:
            os.rmdir(folder)


def _read(records: Records) -> None:
    """Read the files of a run that ended well."""
    folder = records.job.run_dir
    for row in _rows(folder / METRICS):
        if "validation" not in row:
            records.metrics[row["step"]] = row
    records.ledger = {row["step"]: row for row in _rows(folder / LEDGER)}
    for step in records.metrics:
        records.rollouts[step] = _rows(folder / ROLLOUTS / f"step_{step}.jsonl")


def _rows(path: Path) -> list[Row]:
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]
