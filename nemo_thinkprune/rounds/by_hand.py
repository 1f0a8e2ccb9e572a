"""The commands that measure a run whose engine does not evaluate, with results where the report looks for them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from nemo_thinkprune.reporting import run_files
from nemo_thinkprune.rounds.plan import Plan, control_job, evaluation_path, weights_by_step
from nemo_thinkprune.training.run_settings import CONFIG_FILE


def evaluation_commands(plan: Plan) -> list[str]:
    """What to type for each evaluation that is not there yet, then for the report; empty when none is missing."""
    data = plan.recipe.thinkprune.report_data
    if data is None:
        return []
    lines = [
        _command(plan, data, model, evaluation_path(plan, name))
        for name, model in _models(plan)
        if not run_files.read_json(evaluation_path(plan, name))
    ]
    return [*lines, shlex.join(["thinkprune", "report", shown(plan.root)])] if lines else []


def _models(plan: Plan) -> Iterator[tuple[str, str]]:
    """Name and model of each evaluation: the start, what each decided round hands on, the control."""
    start = plan.recipe.policy.model_name if plan.start is None else shown(plan.start)
    yield run_files.START, start
    for number, limit in enumerate(plan.limits, start=1):
        decision = run_files.read_json(plan.folder(number) / "decision.json")
        if decision is not None:
            weights = plan.weights(decision["weights"])
            model = start if weights is None or weights == plan.start else shown(weights.parents[2])
            yield run_files.round_name(number, limit), model
    if plan.recipe.thinkprune.control.enabled:
        found = weights_by_step(plan, control_job(plan).run_dir)
        if found:
            yield run_files.CONTROL, shown(found[max(found)].parents[2])


def _command(plan: Plan, data: str, model: str, out: Path) -> str:
    settings = plan.recipe.thinkprune.validation
    words: list[object] = [
        "thinkprune",
        "eval",
        model,
        "--data",
        shown(Path(data)) if Path(data).exists() else data,
    ]
    words += ["--limit", plan.long_limit, "-n", settings.samples, "--temperature", settings.temperature]
    words += ["--top-p", settings.top_p]
    if settings.top_k is not None:
        words += ["--top-k", settings.top_k]
    for limit in plan.limits:
        words += ["--within", limit]
    words += ["--recipe", shown(plan.root / CONFIG_FILE), "--out", shown(out)]
    return shlex.join(map(str, words))


def shown(path: Path) -> str:
    """The path as a user in the present folder would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
