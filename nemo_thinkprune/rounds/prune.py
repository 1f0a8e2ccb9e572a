"""Iterative pruning: the rounds of ``thinkprune.limits``, each from what the one before selected."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.reporting import run_files
from nemo_thinkprune.reporting.environment import environment
from nemo_thinkprune.reporting.report import write_results
from nemo_thinkprune.reporting.table import results_table
from nemo_thinkprune.rounds.by_hand import evaluation_commands, shown
from nemo_thinkprune.rounds.lane import Lane, LaneStopped
from nemo_thinkprune.rounds.plan import (
    Engine,
    Plan,
    Runner,
    check_prune,
    evaluate,
    record_recipe,
    round_job,
    run_beside,
    weights_by_step,
    whole,
)
from nemo_thinkprune.rounds.select import Decision, Measured, select
from nemo_thinkprune.training.attempts import make_run_folder
from nemo_thinkprune.training.checkpoint_files import verify_checkpoint
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.models import starting_model
from nemo_thinkprune.training.stopping import stop_signals
from nemo_thinkprune.training.supervisor import JobStopped

Say = Callable[[str], None]


def prune(
    recipe: Recipe,
    run_dir: Path,
    *,
    engine: Engine,
    say: Say,
    start: Path | None = None,
    before_table: str = "",
) -> dict[str, Any]:
    """Run all rounds, the control and the evaluations, or go on where an earlier call stopped.

    A round with a decision.json is finished and is not repeated; a round without one is handed to the engine
    again, which resumes it from its newest checkpoint. summary.json and report.html are renewed after each
    stage.

    Args:
        recipe: limits, selection rule, data and everything the engine reads.
        run_dir: folder of the whole run.
        engine: runs the jobs.
        say: gets each line of the narrative.
        start: torch_dist weights to start from instead of those of policy.model_name.
        before_table: a line to say before the table of results.

    Returns:
        The content of summary.json (see reporting/summary.py).

    Raises:
        UserError: the recipe cannot be pruned, differs from the one this folder was begun with, or no
            checkpoint of a round was validated.
        JobStopped: SIGTERM or SIGUSR1 asked for it; what was running is saved, and nothing more is started.
    """
    with stop_signals() as stop:
        plan = make_plan(recipe, run_dir, start, engine=engine)
        _run_all(plan, replace(engine, run=_unless_stopped(engine.run, stop)), say)
        return finish(plan, say, before_table)


def _unless_stopped(run: Runner, stop: threading.Event) -> Runner:
    """``run`` for as long as nobody asks to stop; a wish that came between two jobs ends the run before the next."""

    def checked(job: Job) -> None:
        if not stop.is_set():
            run(job)
        if stop.is_set():
            raise JobStopped(None)

    return checked


def _run_all(plan: Plan, engine: Engine, say: Say) -> None:
    lane = None
    if engine.beside is not None:
        lane = Lane(partial(run_beside, plan, engine.beside), log=plan.root / "logs" / "beside.log")
    try:
        _rounds(plan, engine, say, lane)
        if lane is None:
            run_beside(plan, engine.run)
        else:
            say("Waiting for what runs beside the rounds (the control).")
            lane.join()
    except LaneStopped:
        raise JobStopped(None) from None
    finally:
        if lane is not None:
            lane.stop()


def make_plan(recipe: Recipe, run_dir: Path, start: Path | None = None, *, engine: Engine) -> Plan:
    """Check the recipe, find the model, and record recipe and environment in the run folder."""
    check_prune(recipe)
    source = starting_model(recipe, weights=engine.weights)
    weights = start.resolve() if start else source.weights
    plan = Plan(
        recipe,
        run_dir.resolve(),
        source.folder,
        weights,
        evaluated=engine.evaluates,
    )
    make_run_folder(plan.root)
    record_recipe(plan)
    if not (plan.root / "environment.json").exists():
        write_atomic(plan.root / "environment.json", json.dumps(environment(), indent=2) + "\n")
    return plan


def _rounds(plan: Plan, engine: Engine, say: Say, lane: Lane | None) -> None:
    weights = None
    for number, limit in enumerate(plan.limits, start=1):
        decision = run_files.read_json(plan.folder(number) / "decision.json")
        if decision is None:
            say(f"Round {number} of {len(plan.limits)}: a response has {limit} tokens to end in, or earns 0.")
            engine.run(round_job(plan, number, whole(plan, plan.weights(weights))))
            decision = _decide(plan, number, start=weights, say=say)
        say(f"Round {number} (limit {limit}): {decision['reason']}")
        weights = decision["weights"]
        evaluate(plan, run_files.round_name(number, limit), plan.weights(weights), engine.run)
        write_results(plan.root)
        if lane is not None:
            lane.check()


def _decide(plan: Plan, number: int, *, start: str | None, say: Say) -> dict[str, Any]:
    """Select, with what is selected verified byte for byte: a damaged checkpoint is named and passed over."""
    folder = plan.folder(number)
    checkpoints = weights_by_step(plan, folder)
    while True:
        decision = _select(plan, number, checkpoints, start)
        if decision.selected_step is None:
            break
        step = checkpoints[decision.selected_step].parents[2]
        problems = verify_checkpoint(step, require_manifest=False)
        if not problems:
            break
        say(f"Round {number}: {step.name} is not whole and is passed over: {'; '.join(problems)}")
        del checkpoints[decision.selected_step]
    write_atomic(folder / "decision.json", decision.to_json())
    return json.loads(decision.to_json())


def _select(plan: Plan, number: int, checkpoints: dict[int, Path], start: str | None) -> Decision:
    folder, settings = plan.folder(number), plan.recipe.thinkprune.selection
    base_folder = plan.folder(1) if settings.baseline == "first_round" else folder
    baseline = _baseline(base_folder)
    if base_folder != folder:  # measured within another round's limit
        baseline = replace(baseline, accuracy_at_limit=None)
    return select(
        [Measured.from_row(row) for row in run_files.read_train(folder).validation],
        number=number,
        limit=plan.limits[number - 1],
        baseline=baseline,
        baseline_from=base_folder.name,
        checkpoints={step: path.relative_to(plan.root).as_posix() for step, path in checkpoints.items()},
        start=start,
        max_relative_drop=settings.max_relative_drop,
    )


def _baseline(folder: Path) -> Measured:
    rows = [row for row in run_files.read_train(folder).validation if row["step"] == 0]
    if not rows:
        raise UserError(
            f"{folder}/metrics.jsonl has no validation of step 0, which the rule compares with: "
            "remove the folder and train the round again with grpo.val_at_start true"
        )
    return Measured.from_row(rows[0])


def finish(plan: Plan, say: Say, before_table: str = "") -> dict[str, Any]:
    """Write summary and report, say the table, what was produced, and what to do next."""
    summary = write_results(plan.root)
    say(before_table)
    say(results_table(summary))
    say("")
    last = run_files.read_json(plan.folder(len(plan.limits)) / "decision.json") or {}
    weights = plan.weights(last.get("weights"))
    say(f"Report:   {shown(plan.root / 'report.html')}")
    say(f"Numbers:  {shown(plan.root / 'summary.json')}")
    if weights is not None:
        step = shown(weights.parents[2])
        say(f"Model:    {step}")
        if plan.evaluated:
            data = shown(Path(plan.recipe.thinkprune.report_data or "FILE"))
            say(f"Next:     thinkprune eval {step} --data {data} --limit {plan.long_limit} -n 4")
        say(f"Release:  thinkprune-ckpt release {step} OUT")
    if not plan.evaluated and (commands := evaluation_commands(plan)):
        say(
            "Measure:  this engine does not evaluate; these commands do, and put the results into the report:"
        )
        for command in commands:
            say(f"  {command}")
    return summary
