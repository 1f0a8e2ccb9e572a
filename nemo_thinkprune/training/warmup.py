"""Supervised warm-up: imitate teacher traces until the model reasons, measured by accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.core.optimizer import OptimizerConfig
from torch import Tensor

from nemo_thinkprune.algorithms.losses import masked_nll
from nemo_thinkprune.data.problems import Problem, load_problems
from nemo_thinkprune.data.prompts import Prompt
from nemo_thinkprune.data.recipe_prompts import load_sets, problem_sets
from nemo_thinkprune.data.sft import SftBatch, SftSchedule, load_traces, sft_batches
from nemo_thinkprune.policy.batch import MicroBatch, TokenSequence
from nemo_thinkprune.policy.policy import UpdateResult
from nemo_thinkprune.policy.weights import save_hf
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.section_thinkprune import Warmup
from nemo_thinkprune.training.checkpointing import Checkpointer
from nemo_thinkprune.training.clock import Clock
from nemo_thinkprune.training.problems import encode
from nemo_thinkprune.training.run_folder import RunFolder
from nemo_thinkprune.training.schedule import warmup_learning_rate
from nemo_thinkprune.training.session import Session, optimizer_config
from nemo_thinkprune.training.validate import validate


def warmup_optimizer(recipe: Recipe, settings: Warmup) -> OptimizerConfig:
    """The warm-up's own AdamW; everything else as in training."""
    config = optimizer_config(recipe)
    config.optimizer = "adam"
    config.lr, config.weight_decay, config.clip_grad = settings.lr, settings.weight_decay, settings.clip_grad
    config.adam_beta1, config.adam_beta2 = settings.adam_beta1, settings.adam_beta2
    return config


def warm_up(session: Session) -> None:
    """Train on `thinkprune.warmup`, extend while accuracy is below target, save `model/` as a HF folder.

    Raises:
        UserError: The target is missed after every extension.
    """
    settings = session.recipe.thinkprune.warmup
    assert settings is not None
    folder = RunFolder(session.job.run_dir, write=session.layout.is_main)
    checkpointer = Checkpointer(session)
    info = checkpointer.resume()
    done, accuracy = int(info["step"]), float(info.get("val:accuracy", 0.0))
    folder.truncate_after(done)
    if "val:accuracy" in info and accuracy >= settings.target_accuracy:
        return _save_model(session, done)  # it was reached, and the model was not written any more
    prompts = _validation(session, settings)
    batches = _batches(session, settings, first_step=done + 1)
    last = settings.steps + settings.max_extensions * settings.extension_steps
    gates = set(range(settings.steps, last + 1, settings.extension_steps))
    session.beat("start", done, total=settings.steps)
    for step in range(done + 1, last + 1):
        clock = Clock()
        with clock.phase("step_s"):
            result = _step(session, next(batches), lr=warmup_learning_rate(step, settings))
        row = {"step": step, "loss": result.loss, "grad_norm": result.grad_norm, "timing": clock.seconds}
        validation = validate(session, prompts, step=step, clock=Clock()) if step in gates else None
        folder.write_step(step, row=row, rollouts=None, ledger_row=None, validation=validation)
        session.beat("warmup", step, row=row, total=max(settings.steps, step))
        accuracy = validation["accuracy"] if validation else accuracy
        reached = validation is not None and accuracy >= settings.target_accuracy
        stop = session.context.stop_requested_anywhere(session.layout)
        if stop or reached or step % settings.save_period == 0:
            checkpointer.save(step, validation=validation)
        if reached:
            return _save_model(session, step)
        if stop:
            return session.context.stopped(step)
    raise UserError(
        f"warm-up reached accuracy {accuracy:.3f} after {last} steps, below thinkprune.warmup.target_accuracy = "
        f"{settings.target_accuracy}: raise thinkprune.warmup.max_extensions or lower the target to go on from "
        "here, or warm up in another folder with more steps"
    )


def _validation(session: Session, settings: Warmup) -> list[Prompt]:
    problems: list[Problem]
    if settings.validation_path is not None:
        problems = load_problems(settings.validation_path)
    else:
        problems = load_sets(problem_sets(session.recipe, "validation"))
    if not problems:
        raise UserError("the warm-up has no problems to measure on: set thinkprune.warmup.validation_path")
    return encode(session, problems, what="warm-up validation")


def _batches(session: Session, settings: Warmup, *, first_step: int) -> Iterator[SftBatch]:
    schedule = SftSchedule(
        steps=settings.steps,
        short_fraction=settings.short_share,
        short_batch_first=settings.short_batch_first,
        short_batch_last=settings.short_batch_last,
        batch=settings.batch_size,
    )
    return sft_batches(
        load_traces(settings.data_path),
        session.tokenizer,
        schedule=schedule,
        seed=session.recipe.grpo.seed,
        family=session.recipe.thinkprune.prompt_family,
        first_step=first_step,
    )


def _step(session: Session, batch: SftBatch, *, lr: float) -> UpdateResult:
    sequences = [_split(ids, mask) for ids, mask in zip(batch.token_ids, batch.loss_mask, strict=True)]
    total = sum(len(s.response_ids) for s in sequences)

    def loss_fn(logprobs: Tensor, entropy: Tensor, micro: MicroBatch) -> tuple[Tensor, dict[str, Any]]:
        return masked_nll(logprobs, logprobs.new_ones(len(logprobs)), total), {}

    if len(sequences) < session.layout.dp:
        raise UserError(
            f"a warm-up step has {len(sequences)} traces for {session.layout.dp} data-parallel ranks: raise "
            "thinkprune.warmup.batch_size and short_batch_first, or lower cluster.gpus_per_node"
        )
    share = sequences[session.layout.dp_rank :: session.layout.dp]
    return session.policy.update(share, loss_fn, lr=lr)


def _split(ids: list[int], mask: list[int]) -> TokenSequence:
    prompt = mask.index(1)
    return TokenSequence(ids[:prompt], ids[prompt:])


def _save_model(session: Session, step: int) -> None:
    out = session.job.run_dir / "model"
    save_hf(
        [session.policy.network], session.policy.model, out, source_folder=session.job.model, dtype="keep"
    )
    session.beat("done", step, total=step, produced=str(out))
