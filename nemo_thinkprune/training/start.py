"""Start jobs from a recipe: what the commands `train` and `warmup` do before and after the ranks run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rewards.length_rewards import length_reward
from nemo_thinkprune.training.job import Job

HF_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*"]
ITERATION = "iter_0000000"


def model_folder(model: str) -> Path:
    """A local folder with config.json, tokenizer and safetensors; a hub id is downloaded once and cached.

    Raises:
        UserError: Neither a folder nor a hub id that can be had.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} has no config.json: give a Hugging Face model folder or a hub id")
        return folder.resolve()
    if model.count("/") != 1 or model.startswith((".", "/")):
        raise UserError(f"there is no folder {model}, and it is not a hub id such as Qwen/QwQ-32B")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=HF_FILES))
    except Exception as error:
        raise UserError(
            f"cannot get {model} from the hub ({type(error).__name__}): check the name and the connection, or "
            "give a local folder"
        ) from error


def starting_point(model: str) -> tuple[Path, Path | None]:
    """The HF folder and the torch_dist weights behind `model`: a HF folder, a hub id, `step_N` or `iter_*`.

    A checkpoint names its tokenizer and config.json in `policy/tokenizer`.
    """
    path = Path(model).expanduser()
    step = path.parents[2] if path.name.startswith("iter_") and len(path.parents) > 2 else path
    weights = step / "policy" / "weights" / ITERATION
    if not weights.is_dir():
        return model_folder(model), None
    return model_folder(str(step / "policy" / "tokenizer")), weights.resolve()


def train_job(
    recipe: Recipe, run_dir: Path, *, model: str, limit: int, init_weights: Path | None = None
) -> Job:
    """The job of one round: from `model` (or the weights given) with responses of at most `limit` tokens."""
    length_reward(recipe.thinkprune.length_reward.name, recipe.thinkprune.length_reward.params)
    folder, weights = starting_point(model)
    return Job(
        kind="train",
        run_dir=run_dir,
        recipe=recipe,
        model=str(folder),
        limit=limit,
        init_weights=init_weights or weights,
    )


def train(recipe: Recipe, run_dir: Path, *, run: Callable[[Job], None] | None = None) -> Path:
    """One round at `policy.generation.max_new_tokens`; continues where the run folder stopped."""
    check_recipe(recipe)
    limit = recipe.policy.generation.max_new_tokens
    pretrained = recipe.policy.pretrained_checkpoint
    init = Path(pretrained.path).resolve() if pretrained is not None else None
    job = train_job(recipe, run_dir, model=recipe.policy.model_name, limit=limit, init_weights=init)
    _runner(run)(job)
    return run_dir


def warmup(recipe: Recipe, run_dir: Path, *, run: Callable[[Job], None] | None = None) -> Path:
    """Supervised warm-up; the HF folder it made, which an earlier finished warm-up is not repeated for."""
    if recipe.thinkprune.warmup is None:
        raise UserError("the recipe has no thinkprune.warmup section: add one, or run train or prune instead")
    made = run_dir / "model"
    if (made / "config.json").is_file():
        return made
    folder = model_folder(recipe.policy.model_name)
    limit = recipe.thinkprune.long_limit or recipe.policy.generation.max_new_tokens
    _runner(run)(Job(kind="warmup", run_dir=run_dir, recipe=recipe, model=str(folder), limit=limit))
    return made


def last_step(run_dir: Path, checkpoint_dir: str = "checkpoints") -> Path | None:
    """The newest checkpoint folder of a run, by number."""
    steps = [p for p in (run_dir / checkpoint_dir).glob("step_*") if p.name[5:].isdigit()]
    return max(steps, key=lambda p: int(p.name[5:]), default=None)


def checkpoint_step(path: Path) -> int:
    """The step that a checkpoint folder holds."""
    return int(json.loads((path / "training_info.json").read_text(encoding="utf-8"))["step"])


def _runner(run: Callable[[Job], None] | None) -> Callable[[Job], None]:
    if run is not None:
        return run
    from nemo_thinkprune.training.console import run_with_progress

    return run_with_progress
