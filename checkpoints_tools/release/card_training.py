"""The section of a model card that says how the model was trained."""

from __future__ import annotations

from checkpoints_tools.release import card_text as md
from checkpoints_tools.release.run_facts import Recipe, RunFacts, shown_path

_TRUNCATION = {
    "zero": "1 for a correct answer; a response cut at the limit earns 0",
    "score_cut_text": "1 for a correct answer; a response cut at the limit is scored as it stands",
}


def limits_text(limits: tuple[int, ...]) -> str:
    """`4,000 → 3,000 → 2,000 tokens`."""
    return " → ".join(f"{limit:,}" for limit in limits) + " tokens"


def training(run: RunFacts, base_model: str | None) -> list[str]:
    """The lines of the section: a table of what config.yaml of the checkpoint says."""
    if run.recipe is None:
        return ["The recipe (config.yaml) was not found beside the checkpoint."]
    rows = [(name, value) for name, value in _rows(run, run.recipe, base_model) if value]
    return md.table(("Setting", "Value"), rows, right_from=2)


def _rows(run: RunFacts, recipe: Recipe, base_model: str | None) -> list[tuple[str, str]]:
    return [
        ("Started from", _start(run, recipe, base_model)),
        ("Method", _method(run, recipe)),
        ("Response limits", limits_text(run.limits) if len(run.limits) > 1 else ""),
        ("Limit of this model", f"{run.limit:,} tokens" if run.limit else ""),
        ("Reward", _reward(recipe)),
        ("Data", ", ".join(md.code(name) for name in recipe.data)),
        ("Steps", _steps(run, recipe)),
        ("Batch", _join(f"{recipe.prompts} problems" if recipe.prompts else None,
                        f"{recipe.generations} responses to each" if recipe.generations else None, by=" × ")),
        ("Sampling in training", _join(_named("temperature", recipe.temperature), _named("top-p", recipe.top_p))),
        ("Objective", _objective(recipe)),
        ("Optimiser", _optimiser(recipe)),
        ("Precision", md.code(recipe.precision) if recipe.precision else ""),
        ("Selection", _selection(run, recipe)),
        ("Seed", "" if recipe.seed is None else str(recipe.seed)),
    ]  # fmt: skip


def _start(run: RunFacts, recipe: Recipe, base_model: str | None) -> str:
    base = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "a local model"
    warm = run.results is not None and run.results.baseline and run.results.baseline.label == "after warm-up"
    extra = [f"weights of {md.code(shown_path(recipe.pretrained))}"] if recipe.pretrained else []
    if warm and recipe.warmup_steps:
        extra.append(f"after a supervised warm-up of at least {recipe.warmup_steps:,} updates")
    return _join(base, *extra)


def _method(run: RunFacts, recipe: Recipe) -> str:
    if recipe.estimator is None:
        return ""
    name = "GRPO" if recipe.estimator == "grpo" else md.code(recipe.estimator)
    return f"ThinkPrune with {name}" if run.limits else name


def _reward(recipe: Recipe) -> str:
    rule = _TRUNCATION.get(recipe.truncation or "", "")
    shaped = recipe.length_reward not in (None, "none")
    return _join(rule, f"length reward {md.code(recipe.length_reward or '')}" if shaped else None, by="; ")


def _steps(run: RunFacts, recipe: Recipe) -> str:
    if run.step is None:
        return ""
    where = " in this round" if run.round else ""
    return f"{run.step:,}" + (f", of at most {recipe.max_steps:,}{where}" if recipe.max_steps else where)


def _objective(recipe: Recipe) -> str:
    clip = None
    if recipe.clip_min is not None and recipe.clip_max is not None:
        clip = f"ratio clipped to [1 − {recipe.clip_min:g}, 1 + {recipe.clip_max:g}]"
    kind = f" ({md.code(recipe.kl_type)})" if recipe.kl_type else ""
    penalty = None if recipe.kl_penalty is None else f"KL penalty {recipe.kl_penalty:g}{kind}"
    return _join(clip, penalty)


def _optimiser(recipe: Recipe) -> str:
    if recipe.lr is None:
        return ""
    decay = f" ({md.text(recipe.lr_decay)})" if recipe.lr_decay else ""
    betas = None
    if recipe.adam_beta1 is not None and recipe.adam_beta2 is not None:
        betas = f"betas {recipe.adam_beta1:g} and {recipe.adam_beta2:g}"
    return _join(
        f"Adam, learning rate {recipe.lr:g}{decay}",
        betas,
        _named("weight decay", recipe.weight_decay),
        _named("gradient norm at most", recipe.max_grad_norm),
    )


def _selection(run: RunFacts, recipe: Recipe) -> str:
    this = run.results.this if run.results else None
    if run.round is None or recipe.max_relative_drop is None or this is None:
        return ""
    return (
        "of the checkpoints whose accuracy on the selection problems fell by at most "
        f"{100 * recipe.max_relative_drop:g}% (relative), the one with the shortest mean response"
    )


def _named(name: str, value: float | None) -> str | None:
    return None if value is None else f"{name} {value:g}"


def _join(*parts: str | None, by: str = ", ") -> str:
    return by.join(part for part in parts if part)
