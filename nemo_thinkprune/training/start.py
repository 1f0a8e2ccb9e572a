"""Start jobs from a recipe: what the commands `train` and `warmup` do before and after the ranks run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rewards.length_rewards import length_reward
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.models import find_model, ready_model, refuse_unsupported, with_model
from nemo_thinkprune.training.run_settings import raise_changes, recipe_changes


def train(
    recipe: Recipe,
    run_dir: Path,
    *,
    run: Callable[[Job], None] | None = None,
    check: Callable[[Recipe], object] = check_recipe,
    weights: bool = True,
) -> Path:
    """One round at `policy.generation.max_new_tokens`; continues where the run folder stopped.

    `run` runs the job (default: the local engine, with progress); `check` and `weights` as `models.ready_model`.

    Raises:
        UserError: The recipe or its model cannot be used.
    """
    length_reward(recipe.thinkprune.length_reward.name, recipe.thinkprune.length_reward.params)
    placed, source = ready_model(recipe, weights=weights, check=check)
    job = Job(
        kind="train",
        run_dir=run_dir,
        recipe=recipe if weights else placed,
        model=source.folder,
        limit=recipe.policy.generation.max_new_tokens,
        init_weights=source.weights,
    )
    _runner(run)(job)
    return run_dir


def warmup(recipe: Recipe, run_dir: Path, *, run: Callable[[Job], None] | None = None) -> Path:
    """Supervised warm-up; the HF folder it made, which an earlier finished warm-up is not repeated for.

    Raises:
        UserError: There is no warm-up in the recipe, its model cannot be used, or the folder holds a warm-up
            with other settings.
    """
    if recipe.thinkprune.warmup is None:
        raise UserError("the recipe has no thinkprune.warmup section: add one, or run train or prune instead")
    made = run_dir / "model"
    if (made / "config.json").is_file():
        raise_changes(run_dir, recipe_changes(run_dir, recipe))
        return made
    source = find_model(recipe.policy.model_name)
    refuse_unsupported(source.folder)
    check_recipe(with_model(recipe, source.folder))
    job = Job(
        kind="warmup",
        run_dir=run_dir,
        recipe=recipe,
        model=source.folder,
        limit=recipe.thinkprune.long_limit or recipe.policy.generation.max_new_tokens,
        init_weights=source.weights,
    )
    _runner(run)(job)
    return made


def last_step(run_dir: Path, checkpoint_dir: str = "checkpoints") -> Path | None:
    """The newest checkpoint folder of a run, by number."""
    steps = [p for p in (run_dir / checkpoint_dir).glob("step_*") if p.name[5:].isdigit()]
    return max(steps, key=lambda p: int(p.name[5:]), default=None)


def _runner(run: Callable[[Job], None] | None) -> Callable[[Job], None]:
    if run is not None:
        return run
    from nemo_thinkprune.training.console import run_with_progress

    return run_with_progress
