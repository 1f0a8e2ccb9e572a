"""Checks of the keys of `loss_fn` that need or exclude each other."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_thinkprune.recipe.schema import Recipe


def check_ratios(recipe: Recipe) -> Iterator[str]:
    """Yield a message for each contradiction between the kinds of ratio and the means over tokens."""
    loss = recipe.loss_fn
    if loss.sequence_level_importance_ratios and loss.token_level_loss:
        yield "loss_fn.sequence_level_importance_ratios needs loss_fn.token_level_loss=false"
    if not loss.use_cispo:
        return
    if not loss.token_level_loss:
        yield "loss_fn.use_cispo needs loss_fn.token_level_loss=true"
    for key in ("disable_ppo_ratio", "force_on_policy_ratio", "sequence_level_importance_ratios"):
        if getattr(loss, key):
            yield f"loss_fn.use_cispo is built on clipped ratios of tokens; set loss_fn.{key}=false"
    if loss.ratio_clip_c is not None:
        yield "loss_fn.use_cispo has no dual clip; set loss_fn.ratio_clip_c=null"


def check_sampler_correction(recipe: Recipe) -> Iterator[str]:
    """Yield a message for each contradiction in how weights p_old / p_sampling are truncated."""
    loss = recipe.loss_fn
    kind, upper = loss.truncated_importance_sampling_type, loss.truncated_importance_sampling_ratio
    lower = loss.truncated_importance_sampling_ratio_min
    prefix = "loss_fn.truncated_importance_sampling"
    if kind is None:
        if upper is not None:
            yield f"{prefix}_ratio = {upper:g} has no effect without {prefix}_type; set tis, icepop or seq-mask-tis"
        return
    if not loss.use_importance_sampling_correction:
        yield f"{prefix}_type = {kind} needs loss_fn.use_importance_sampling_correction=true"
    if upper is None:
        yield f"{prefix}_type = {kind} needs an upper bound; set {prefix}_ratio"
    if kind != "tis" and lower is None:
        yield f"{prefix}_type = {kind} needs a lower bound; set {prefix}_ratio_min"
    if upper is not None and lower is not None and lower > upper:
        yield f"{prefix}_ratio_min = {lower:g} must not be above {prefix}_ratio = {upper:g}"
    if kind == "seq-mask-tis" and loss.sequence_level_importance_ratios:
        yield f"{prefix}_type = seq-mask-tis needs loss_fn.sequence_level_importance_ratios=false"
