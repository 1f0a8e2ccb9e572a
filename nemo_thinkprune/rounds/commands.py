"""What the commands do: each builds what its one call needs from a recipe and an engine.

The modules that import torch are imported by the functions that need them, so that `check` and `score` stay quick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemo_thinkprune.recipe.check_files import check_report_data
from nemo_thinkprune.recipe.checks import check_recipe, model_problem
from nemo_thinkprune.recipe.describe import describe_check
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_file
from nemo_thinkprune.recipe.load import load_recipe, recipe_from_dict
from nemo_thinkprune.recipe.model_source import locate
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rounds.length_reward_formula import length_reward_formula

if TYPE_CHECKING:
    from nemo_thinkprune.rewards.score_file import FileScore
    from nemo_thinkprune.rounds.plan import Engine

Say = Callable[[str], None]
Truncation = Literal["zero", "score_cut_text"]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that a user asked for: its name, and where and on what NeMo-RL is to run."""

    name: str = "local"
    nemo_rl_root: Path | None = None
    on_cpu: bool = False

    def __post_init__(self) -> None:
        """Refuse what the local engine does not have.

        Raises:
            UserError: naming the option.
        """
        if self.name != "nemo-rl":
            given = {"--on-cpu": self.on_cpu, "--nemo-rl-root": self.nemo_rl_root is not None}
            for option in (name for name, is_given in given.items() if is_given):
                raise UserError(f"{option} belongs to --engine nemo-rl: add that, or leave {option} away")

    def engine(self, recipe: Recipe) -> Engine:
        """The engine itself.

        Raises:
            UserError: NeMo-RL is asked for and not here.
        """
        if self.name == "nemo-rl":
            from nemo_thinkprune.rounds.nemo_rl import nemo_rl_engine

            return nemo_rl_engine(root=self.nemo_rl_root, on_cpu=self.on_cpu)
        from nemo_thinkprune.rounds.local import local_engine

        return local_engine(recipe)


LOCAL = EngineChoice()


def default_run_dir(recipe: str) -> Path:
    """Return runs/NAME for a recipe given by path or name."""
    return Path("runs") / Path(recipe).stem


def check(recipe: str, overrides: Sequence[str], *, engine: EngineChoice = LOCAL) -> str:
    """Load and check a recipe; return what it will do, in words.

    A recipe can be checked for NeMo-RL where that is not; a checkout that is named must be one.

    Raises:
        UserError: everything that is wrong with it.
    """
    loaded = _loaded(recipe, overrides)
    if engine.nemo_rl_root is not None:
        from nemo_thinkprune.cluster.find import find_nemo_rl

        find_nemo_rl(engine.nemo_rl_root)
    return describe_check(
        loaded, engine=engine.name, on_cpu=engine.on_cpu, length_reward=length_reward_formula(loaded)
    )


def train(
    recipe: str, overrides: Sequence[str], run_dir: Path | None, *, say: Say, engine: EngineChoice = LOCAL
) -> None:
    """Train one round, write its summary and report, and say what was produced.

    Raises:
        UserError: a recipe, data or model that cannot be used, or an engine that is not here.
    """
    from nemo_thinkprune.reporting.report import write_results
    from nemo_thinkprune.training.start import last_step
    from nemo_thinkprune.training.start import train as run

    loaded = _loaded(recipe, overrides)
    found = engine.engine(loaded)
    folder = run(
        loaded,
        run_dir or default_run_dir(recipe),
        run=found.run,
        check=found.check,
        weights=found.weights,
    )
    write_results(folder)
    say(f"Report:   {folder / 'report.html'}")
    say(f"Numbers:  {folder / 'summary.json'}")
    checkpoint = last_step(folder, loaded.checkpointing.checkpoint_dir)
    if checkpoint is not None:
        say(f"Model:    {checkpoint}")
        say(f"Next:     thinkprune eval {checkpoint} --data FILE --limit LIMIT -n 4")
        say(f"Release:  thinkprune-ckpt release {checkpoint} OUT")


def warmup(recipe: str, overrides: Sequence[str], run_dir: Path | None) -> Path:
    """Run the supervised warm-up of a recipe; return the folder of the model it made.

    Raises:
        UserError: no warm-up in the recipe, or its target is missed.
    """
    from nemo_thinkprune.training.start import warmup as run

    loaded = _loaded(recipe, overrides)
    check_recipe(loaded)
    return run(loaded, run_dir or default_run_dir(recipe))


def prune(
    recipe: str, overrides: Sequence[str], run_dir: Path | None, *, say: Say, engine: EngineChoice = LOCAL
) -> dict[str, Any]:
    """Run all rounds of a recipe; return the content of summary.json.

    Raises:
        UserError: a recipe that cannot be pruned, or an engine that is not here.
    """
    from nemo_thinkprune.rounds.prune import prune as run
    from nemo_thinkprune.training.models import ready_model

    loaded = _loaded(recipe, overrides)
    found = engine.engine(loaded)

    def check_all(asked: Recipe) -> None:
        found.check(asked)
        check_report_data(asked)

    placed, source = ready_model(loaded, weights=found.weights, check=check_all)
    return run(
        placed,
        run_dir or default_run_dir(recipe),
        engine=found,
        say=say,
        start=source.weights,
    )


def quickstart(recipe: str, overrides: Sequence[str], run_dir: Path | None, *, say: Say) -> dict[str, Any]:
    """Warm up and prune the tiny model; return the content of summary.json.

    Raises:
        UserError: a recipe without warm-up, or a warm-up that misses its target.
    """
    from nemo_thinkprune.rounds.local import local_engine
    from nemo_thinkprune.rounds.quickstart import quickstart as run

    loaded = _loaded(recipe, overrides)
    check_recipe(loaded)
    return run(loaded, run_dir or default_run_dir(recipe), engine=local_engine(loaded), say=say)


def evaluate(
    model: str,
    overrides: Sequence[str],
    *,
    data: str,
    limit: int,
    samples: int,
    temperature: float,
    top_p: float,
    top_k: int | None,
    within: Sequence[int],
    recipe: str | None,
    out: Path | None,
) -> str:
    """Measure a model on a set of problems; return the table of what was written to `out`.

    Accuracy is also given as if responses had been cut at each limit of `within`.  Prompts and layout come
    from `recipe`; without one from the recipe of a checkpoint, and for any other model from the defaults.

    Raises:
        UserError: a model or data that cannot be used.
    """
    from nemo_thinkprune.reporting.table import evaluation_table
    from nemo_thinkprune.rounds.evaluate import evaluate_model
    from nemo_thinkprune.training.console import run_with_progress

    if problem := model_problem(model):
        raise UserError(f"MODEL {problem}")
    done = evaluate_model(
        model, data=data, limit=limit, samples=samples, temperature=temperature, top_p=top_p, top_k=top_k,
        recipe=_evaluation_recipe(model, data, recipe, overrides), limits=within, out=out,
        run=run_with_progress,
    )  # fmt: skip
    return f"{evaluation_table(done.summary)}\n\nNumbers:   {done.path}\nResponses: {done.rows}"


def score(
    path: Path, out: Path | None, *, truncation: Truncation, workers: int, deadline_s: float, memory_mb: int
) -> FileScore:
    """Score the rows of a JSONL file and write them back; return counts.

    Raises:
        UserError: a row that cannot be scored or a setting out of range.
    """
    from nemo_thinkprune.rewards.score import Scorer
    from nemo_thinkprune.rewards.score_file import score_file

    with Scorer(workers=workers, deadline_s=deadline_s, memory_mb=memory_mb, truncation=truncation) as scorer:
        return score_file(path, out, scorer=scorer)


def _loaded(recipe: str, overrides: Sequence[str]) -> Recipe:
    """Load a recipe and refuse settings of its length reward that the reward would refuse later."""
    loaded = load_recipe(recipe, overrides)
    length_reward_formula(loaded)
    return loaded


def _evaluation_recipe(model: str, data: str, recipe: str | None, overrides: Sequence[str]) -> Recipe:
    """Return the recipe that an evaluation takes its prompts, scoring and layout from."""
    step = locate(model).step
    if recipe is None and step is not None and is_file(step / "config.yaml"):
        recipe = str(step / "config.yaml")
    if recipe is not None:
        return load_recipe(recipe, overrides)
    base = {"policy": {"model_name": model}, "data": {"train": {"data_path": data}}}
    return recipe_from_dict(base, overrides, name="the evaluation")
