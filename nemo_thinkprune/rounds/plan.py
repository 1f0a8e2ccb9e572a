"""What a prune run is made of: its folder, weights, and the jobs of rounds, control and evaluations."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import dump_yaml, with_values
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.reporting import run_files
from nemo_thinkprune.training.checkpoint_files import WEIGHTS, complete_checkpoints, verify_checkpoint
from nemo_thinkprune.training.job import EvalSpec, Job
from nemo_thinkprune.training.run_settings import CONFIG_FILE, raise_changes, recipe_changes

Runner = Callable[[Job], None]
"""Runs a job to its end, resuming where an earlier call stopped; raises when it fails or is stopped."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How jobs are run. ``beside`` runs one in a second process at the same time; None: one job at a time.

    ``beside`` must be a module-level function (or a partial of one), since that process is spawned. ``evaluates``:
    it runs jobs of kind "eval" too. ``weights``: it reads the model's weights here, and does not get them itself.
    ``check`` raises UserError for a recipe that it cannot run.
    """

    run: Runner
    beside: Runner | None = None
    evaluates: bool = True
    weights: bool = True
    check: Callable[[Recipe], object] = check_recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """A prune run: recipe, absolute folder, HF folder of the model, and the weights that replace its own.

    ``evaluated``: the engine evaluates what it trained.
    """

    recipe: Recipe
    root: Path
    model: str
    start: Path | None = None
    evaluated: bool = True

    @property
    def limits(self) -> tuple[int, ...]:
        """Response limits of the rounds in tokens."""
        return tuple(self.recipe.thinkprune.limits)

    @property
    def long_limit(self) -> int:
        """Limit at which accuracy is reported: thinkprune.long_limit, else that of the first round."""
        return self.recipe.thinkprune.long_limit or self.limits[0]

    def folder(self, number: int) -> Path:
        """Folder of round ``number`` (from 1)."""
        return self.root / run_files.round_name(number, self.limits[number - 1])

    def weights(self, relative: str | None) -> Path | None:
        """Weights that a decision names.

        Raises:
            UserError: they are gone.
        """
        if relative is None:
            return self.start
        path = self.root / relative
        if not path.is_dir():
            raise UserError(
                f"{path} is gone, but a later round starts from it: restore it, or remove the folder of that "
                "round and of those after it to train them again"
            )
        return path


def whole(plan: Plan, weights: Path | None) -> Path | None:
    """``weights`` themselves, once a checkpoint of this run that they belong to has been verified.

    Raises:
        UserError: the checkpoint is damaged; the message names its files.
    """
    if weights is not None and weights != plan.start:
        step = weights.parents[2]
        problems = verify_checkpoint(step, require_manifest=False)
        if problems:
            raise UserError(
                f"{step} is not whole and is not used: {'; '.join(problems)}; restore it, or remove decision.json "
                "of its round and the folders of later rounds to choose another"
            )
    return weights


def round_job(plan: Plan, number: int, start: Path | None) -> Job:
    """The training of round ``number`` from weights ``start``, with fresh optimizer and reference."""
    return Job(
        kind="train",
        run_dir=plan.folder(number),
        recipe=plan.recipe,
        model=plan.model,
        init_weights=start,
        limit=plan.limits[number - 1],
    )


def control_job(plan: Plan) -> Job:
    """As many steps as all rounds together, in one run at the control's limit, from the same start."""
    grpo, rounds = plan.recipe.grpo, len(plan.limits)
    recipe = with_values(
        plan.recipe,
        {
            "grpo.max_num_steps": grpo.max_num_steps * rounds,
            "grpo.max_num_epochs": grpo.max_num_epochs * rounds,
        },
    )
    return Job(
        kind="train",
        run_dir=plan.root / run_files.CONTROL,
        recipe=recipe,
        model=plan.model,
        init_weights=plan.start,
        limit=recipe.thinkprune.control.limit or plan.long_limit,
    )


def evaluation_job(plan: Plan, name: str, weights: Path | None) -> Job:
    """The evaluation of ``weights`` on the reporting set, at the long limit and as if cut at each round's."""
    settings, data = plan.recipe.thinkprune.validation, plan.recipe.thinkprune.report_data
    if data is None:
        raise UserError("thinkprune.report_data is not set: name the problems that results are reported on")
    return Job(
        kind="eval",
        run_dir=plan.root / "eval" / name,
        recipe=plan.recipe,
        model=plan.model,
        init_weights=weights,
        limit=plan.long_limit,
        eval=EvalSpec(
            data_path=data,
            limit=plan.long_limit,
            samples=settings.samples,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            out=evaluation_path(plan, name),
            limits=plan.limits,
        ),
    )


def evaluation_path(plan: Plan, name: str) -> Path:
    """Where an evaluation's summary is; its rows are beside it as .jsonl."""
    return plan.root / "eval" / f"{name}.json"


def evaluate(plan: Plan, name: str, weights: Path | None, run: Runner) -> None:
    """Evaluate once: nothing to do when the result is there, or when the recipe names no reporting set.

    Nor when the engine does not evaluate: the user does (see ``evaluation_commands``).
    """
    wanted = plan.evaluated and plan.recipe.thinkprune.report_data is not None
    if not wanted or run_files.read_json(evaluation_path(plan, name)):
        return
    run(evaluation_job(plan, name, whole(plan, weights)))


def run_beside(plan: Plan, run: Runner) -> None:
    """What does not wait for the rounds: the evaluation of the start, the control and its evaluation."""
    evaluate(plan, run_files.START, plan.start, run)
    if not plan.recipe.thinkprune.control.enabled or run_files.read_json(
        evaluation_path(plan, run_files.CONTROL)
    ):
        return
    job = control_job(plan)
    found = weights_by_step(plan, job.run_dir)
    if job.recipe.grpo.max_num_steps not in found:
        run(job)
        found = weights_by_step(plan, job.run_dir)
    if not found:
        raise UserError(f"the control run left no checkpoint in {job.run_dir}: set checkpointing.enabled")
    evaluate(plan, run_files.CONTROL, found[max(found)], run)


def weights_by_step(plan: Plan, run_dir: Path) -> dict[int, Path]:
    """The torch_dist weights of each complete checkpoint of a train run, whichever engine wrote it."""
    folder = run_dir / plan.recipe.checkpointing.checkpoint_dir
    found = complete_checkpoints(folder, require_manifest=False)
    return {item.step: item.path / WEIGHTS for item in found}


def record_recipe(plan: Plan) -> None:
    """Write the run's config.yaml, after comparing it with the one the run was begun with.

    Raises:
        UserError: the folder holds rounds of other limits, or a run whose settings would give other results.
    """
    names = {plan.folder(number).name for number in range(1, len(plan.limits) + 1)}
    problems = [
        f"{path.name}/ is not a round of thinkprune.limits = {list(plan.limits)}"
        for path in sorted(plan.root.glob("round_*"))
        if run_files.parse_round(path.name) and path.name not in names
    ]
    raise_changes(plan.root, problems + recipe_changes(plan.root, plan.recipe))
    write_atomic(plan.root / CONFIG_FILE, dump_yaml(plan.recipe))


def check_prune(recipe: Recipe) -> None:
    """Refuse a recipe that rounds cannot be selected with, naming every reason.

    Raises:
        UserError: listing what to change.
    """
    problems = []
    checkpointing, grpo = recipe.checkpointing, recipe.grpo
    if not checkpointing.enabled:
        problems.append("checkpointing.enabled is false: rounds hand over checkpoints")
    if checkpointing.keep_top_k is not None:
        problems.append("checkpointing.keep_top_k must be null: the rule chooses among all checkpoints")
    if os.path.isabs(checkpointing.checkpoint_dir):
        problems.append("checkpointing.checkpoint_dir must be relative: each round has its own")
    if not recipe.data.validation:
        problems.append("data.validation is missing: checkpoints are selected on it")
    if not grpo.val_at_start:
        problems.append("grpo.val_at_start must be true: the rule compares with step 0")
    if grpo.val_period == 0 and not grpo.val_at_end:
        problems.append("grpo.val_period is 0 and grpo.val_at_end false: no checkpoint would be measured")
    report = recipe.thinkprune.report_data
    used = [*recipe.data.train, *(recipe.data.validation or [])]
    if report is not None and report in {data.data_path for data in used if data.split is None}:
        problems.append(
            "thinkprune.report_data is also trained or selected on: results need problems of their own"
        )
    if any(a <= b for a, b in zip(recipe.thinkprune.limits, recipe.thinkprune.limits[1:], strict=False)):
        problems.append("thinkprune.limits must fall from round to round")
    if problems:
        raise UserError("this recipe cannot be pruned:\n  " + "\n  ".join(problems))
