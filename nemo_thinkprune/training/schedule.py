"""Learning rates as pure functions of the update number, so that nothing has to be restored on resume."""

from __future__ import annotations

import math

from nemo_thinkprune.recipe.section_megatron import MegatronOptimizer, MegatronScheduler
from nemo_thinkprune.recipe.section_thinkprune import Warmup


def learning_rate(update: int, *, optimizer: MegatronOptimizer, scheduler: MegatronScheduler) -> float:
    """Learning rate of `update` (1, 2, ...) under Megatron's scheduler keys.

    Linear from `lr_warmup_init` over `lr_warmup_iters` updates, then constant, or linear or cosine down to
    `min_lr` at `lr_decay_iters` (Megatron-LM, megatron/core/optimizer_param_scheduler.py, get_lr).
    """
    warmup = scheduler.lr_warmup_iters
    if warmup and update <= warmup:
        return scheduler.lr_warmup_init + (optimizer.lr - scheduler.lr_warmup_init) * update / warmup
    if scheduler.lr_decay_style == "constant":
        return optimizer.lr
    decay = scheduler.lr_decay_iters or update
    if update > decay:
        return optimizer.min_lr
    share = (update - warmup) / max(1, decay - warmup)
    if scheduler.lr_decay_style == "linear":
        left = 1.0 - share
    elif scheduler.lr_decay_style == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * share))
    else:
        raise ValueError(
            f"lr_decay_style {scheduler.lr_decay_style!r} is not one of constant, linear, cosine"
        )
    return optimizer.min_lr + left * (optimizer.lr - optimizer.min_lr)


def warmup_learning_rate(step: int, settings: Warmup) -> float:
    """Learning rate of supervised step `step` (1, 2, ...): rising, constant to the middle, then linear down.

    Steps beyond `settings.steps` (extensions) run at the final rate.
    """
    final = settings.lr * settings.final_lr_share
    half = settings.steps / 2
    if step <= settings.lr_warmup_steps:
        return settings.lr * step / settings.lr_warmup_steps
    if step <= half:
        return settings.lr
    return max(final, settings.lr + (final - settings.lr) * (step - half) / (settings.steps - half))
