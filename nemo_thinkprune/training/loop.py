"""The GRPO loop on one machine: sample, score, compare within groups, update; a row and a checkpoint at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_thinkprune.data.ledger import ledger_row, read_ledger, verify_ledger
from nemo_thinkprune.policy.device import peak_memory_mb
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rollout.types import Sampling
from nemo_thinkprune.training.checkpointing import Checkpointer
from nemo_thinkprune.training.clock import Clock
from nemo_thinkprune.training.metrics import step_row
from nemo_thinkprune.training.objective import Objective, optimise
from nemo_thinkprune.training.problems import Plan, make_plan
from nemo_thinkprune.training.run_folder import LEDGER, RunFolder
from nemo_thinkprune.training.samples import Sample, collect, shaped
from nemo_thinkprune.training.schedule import learning_rate
from nemo_thinkprune.training.session import Session
from nemo_thinkprune.training.validate import validate


def train(session: Session) -> None:
    """Run from the newest valid checkpoint (or step 0) to the last step."""
    plan = make_plan(session)
    objective = Objective.from_recipe(session.recipe)
    if objective.needs_reference:
        session.policy.freeze_reference()  # before resuming: the reference is the model the round began with
    checkpointer = Checkpointer(session)
    folder = RunFolder(session.job.run_dir, write=session.layout.is_main)
    done = int(checkpointer.resume()["step"])
    session.engine.refit()
    folder.truncate_after(done)
    check_ledger(session, plan)
    session.beat("start", done, total=plan.last_step)
    if done == 0 and session.recipe.grpo.val_at_start and plan.validation:
        folder.write_validation(0, validate(session, plan.validation, step=0, clock=Clock()))
    carried: dict[str, float] = {}
    for step in range(done + 1, plan.last_step + 1):
        clock, after = session.clock(carried), session.clock()
        samples, advantages, row = train_step(session, plan, objective, step, clock)
        validation = _validate_if_due(session, plan, step, clock)
        row["timing"] = timing(session, clock, samples)
        with after.phase("record_s"):
            folder.write_step(
                step,
                row=row,
                rollouts=rollout_rows(samples, advantages),
                ledger_row=ledger_row(plan.ledger, step, [p.problem.id for p in plan.train]).to_json(),
                validation=validation,
            )
        session.beat("step", step, row=row, total=plan.last_step, validation=validation)
        session.tell_measured(step, clock)
        # a step's row is there before its checkpoint: the next row tells how long writing and saving took
        stop = _save_if_due(session, checkpointer, plan, step, validation, after)
        session.tell_measured(step, after)
        carried = after.seconds
        if stop and step < plan.last_step:
            return session.context.stopped(step)
    check_ledger(session, plan)


def _validate_if_due(session: Session, plan: Plan, step: int, clock: Clock) -> dict[str, Any] | None:
    grpo = session.recipe.grpo
    at_end = step == plan.last_step and grpo.val_at_end
    if not plan.validation or not (at_end or _due(step, grpo.val_period)):
        return None
    with clock.phase("validate_s"):
        return validate(session, plan.validation, step=step, clock=Clock())


def _save_if_due(
    session: Session,
    checkpointer: Checkpointer,
    plan: Plan,
    step: int,
    validation: dict[str, Any] | None,
    clock: Clock,
) -> bool:
    """Save when it is time, or when the run was asked to stop; whether it was."""
    settings = session.recipe.checkpointing
    stop = session.context.stop_requested_anywhere(session.layout)
    if settings.enabled and (stop or step == plan.last_step or _due(step, settings.save_period)):
        with clock.phase("save_s"):
            checkpointer.save(step, validation=validation)
    return stop


def rollout_rows(samples: Sequence[Sample], advantages: Sequence[list[float]]) -> list[dict[str, Any]]:
    """The rows of rollouts/step_N.jsonl; `advantage` is the mean over the response's tokens."""
    pairs = zip(samples, advantages, strict=True)
    return [sample.to_row() | {"advantage": sum(values) / len(values)} for sample, values in pairs]


def check_ledger(session: Session, plan: Plan) -> None:
    """Prove from ledger.jsonl that each problem was trained as often as planned so far.

    Raises:
        UserError: A step is missing, repeated, or trained other problems, as when the data were changed.
    """
    path = session.job.run_dir / LEDGER
    if session.layout.is_main and path.exists():
        verify_ledger(read_ledger(path), plan.ledger, [prompt.problem.id for prompt in plan.train])


def train_step(
    session: Session, plan: Plan, objective: Objective, step: int, clock: Clock
) -> tuple[list[Sample], list[list[float]], dict[str, Any]]:
    """Sample, score, compare, update; the samples, their advantages and the step's metrics."""
    recipe, group = session.recipe, objective.group_size
    with clock.phase("step_s"):
        samples = collect(
            session,
            [plan.train[index] for index in plan.ledger.take(step)],
            samples=group,
            limit=session.job.limit,
            sampling=Sampling(temperature=recipe.policy.generation.temperature, seed=recipe.grpo.seed),
            stream=f"step {step}",
            step=step,
            clock=clock,
        )
        samples = shaped(samples, objective.reward, group_size=group)
        advantages = objective.advantages(samples)
        lrs = learning_rates(recipe, step, updates=-(-len(samples) // objective.update_size))
        session.beat("update", step)
        updates = optimise(session.policy, objective, samples, advantages, lrs=lrs, clock=clock)
        with clock.phase("refit_s"):
            session.engine.refit()
        rows = [sample.to_row() for sample in samples]
        row = step_row(step, rows, group_size=group, limit=session.job.limit, updates=updates, lr=lrs[-1])
    return samples, advantages, row


def learning_rates(recipe: Recipe, step: int, *, updates: int) -> list[float]:
    """Learning rate of each update of `step`; updates are counted through the whole round."""
    megatron = recipe.policy.megatron_cfg
    first = (step - 1) * updates + 1
    return [
        learning_rate(first + i, optimizer=megatron.optimizer, scheduler=megatron.scheduler)
        for i in range(updates)
    ]


def timing(session: Session, clock: Clock, samples: Sequence[Sample]) -> dict[str, float]:
    """Seconds per phase, response tokens generated per second of the whole step, peak memory of rank 0."""
    tokens = sum(len(s.rollout.response_ids) for s in samples)
    return {
        **clock.seconds,
        "tokens_per_s": tokens / clock.seconds["step_s"],
        "peak_memory_mb": peak_memory_mb(session.device),
    }


def _due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0
