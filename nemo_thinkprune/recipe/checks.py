"""Checks across keys, before any process starts; each message says what to change."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from nemo_thinkprune.recipe import local_support, nemo_rl_support
from nemo_thinkprune.recipe.checks_layout import check_layout
from nemo_thinkprune.recipe.checks_loss import check_ratios, check_sampler_correction
from nemo_thinkprune.recipe.checks_megatron import check_megatron
from nemo_thinkprune.recipe.checks_nemo_rl import check_nemo_rl
from nemo_thinkprune.recipe.checks_run import check_kept, check_run_folder
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_file, is_folder
from nemo_thinkprune.recipe.schema import Recipe

ENGINES = ("local", "nemo-rl")
Check = Callable[[Recipe], Iterator[str]]

# A hub id is a name or owner/name; everything else can only be a path.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_SEED_BITS = 63  # seeds are passed on as signed 64-bit integers
_METRIC = re.compile(r"val:(?:accuracy|mean_tokens)|train:.+")


def check_recipe(recipe: Recipe, *, engine: str = "local", on_cpu: bool = False) -> list[str]:
    """Check a recipe for an engine and return notes: things that are allowed but may not be meant.

    Looks at the recipe alone; whether the files it names are there is asked by `check_files`.

    Args:
        recipe: a recipe whose keys and types are right.
        engine: "local" or "nemo-rl".
        on_cpu: with "nemo-rl": NeMo-RL's loop around the local engine's policy, instead of GPU workers.

    Raises:
        UserError: listing every problem.
    """
    if engine not in ENGINES:
        raise UserError(f"unknown engine '{engine}': choose one of {', '.join(ENGINES)}")
    if on_cpu and engine != "nemo-rl":
        raise UserError("--on-cpu is for --engine nemo-rl; the local engine runs on a CPU as it is")
    checks: list[Check] = [_objective, check_ratios, check_sampler_correction, _batches, _lengths, _sampling]
    checks += [_optimizer, _backend, _model, _paths, _run, check_run_folder, check_kept, check_layout]
    if engine == "local":
        checks.append(local_support.unsupported)
    else:
        of_nemo_rl = (check_nemo_rl, check_megatron, nemo_rl_support.unsupported)
        checks += [partial(check, on_cpu=on_cpu) for check in of_nemo_rl]
    problems = [problem for check in checks for problem in check(recipe)]
    if problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        lines = "\n".join(f"  {problem}" for problem in problems)
        cpu = " with --on-cpu" if on_cpu else ""
        raise UserError(f"the recipe has {count} for the {engine} engine{cpu}:\n{lines}")
    ignored = (
        local_support.ignored(recipe) if engine == "local" else nemo_rl_support.ignored(recipe, on_cpu=on_cpu)
    )
    return [*_notes(recipe), *_selection_notes(recipe, engine=engine), *ignored]


def updates_per_step(recipe: Recipe) -> int:
    """Return the optimizer updates made on one rollout batch."""
    grpo = recipe.grpo
    return max(
        1,
        grpo.num_prompts_per_step * grpo.num_generations_per_prompt // recipe.policy.train_global_batch_size,
    )


def _objective(recipe: Recipe) -> Iterator[str]:
    loss, grpo = recipe.loss_fn, recipe.grpo
    if grpo.overlong_filtering:
        yield (
            "grpo.overlong_filtering is true: it takes truncated responses out of the loss, the very ones "
            "ThinkPrune learns from; set false"
        )
    if loss.reference_policy_kl_penalty < 0 and not recipe.thinkprune.allow_negative_kl:
        yield (
            f"loss_fn.reference_policy_kl_penalty = {loss.reference_policy_kl_penalty:g} pushes the policy "
            "away from the reference; set 0 or a positive weight such as 0.001, or, to reproduce the code that "
            "was published with the paper, thinkprune.allow_negative_kl=true"
        )
    if loss.ratio_clip_c is not None and loss.ratio_clip_c <= 1:
        yield f"loss_fn.ratio_clip_c = {loss.ratio_clip_c:g}: must be null or above 1, usually 3"
    if loss.ratio_clip_min >= 1:
        yield f"loss_fn.ratio_clip_min = {loss.ratio_clip_min:g}: must be below 1, usually 0.2"
    if grpo.skip_reference_policy_logprobs_calculation and loss.reference_policy_kl_penalty != 0:
        yield (
            "grpo.skip_reference_policy_logprobs_calculation is true, but the KL term needs them; remove "
            "the key or set loss_fn.reference_policy_kl_penalty=0"
        )
    low, high = grpo.advantage_clip_low, grpo.advantage_clip_high
    if low is not None and high is not None and low >= high:
        yield f"grpo.advantage_clip_low = {low:g} must be below grpo.advantage_clip_high = {high:g}"


def _batches(recipe: Recipe) -> Iterator[str]:
    grpo, policy, loss = recipe.grpo, recipe.policy, recipe.loss_fn
    prompts, group, update = (
        grpo.num_prompts_per_step,
        grpo.num_generations_per_prompt,
        policy.train_global_batch_size,
    )
    total = prompts * group
    if total % update:
        yield (
            f"policy.train_global_batch_size = {update} does not divide grpo.num_prompts_per_step x "
            f"num_generations_per_prompt = {prompts} x {group} = {total}; remove the key for one update"
        )
    elif total != update and loss.force_on_policy_ratio:
        yield (
            f"loss_fn.force_on_policy_ratio needs one update per rollout batch, not {total // update}; "
            f"set policy.train_global_batch_size={total}"
        )
    if group < 2:
        yield (
            "grpo.num_generations_per_prompt = 1: a response is compared with the others of its group, so "
            "every advantage would be 0; set at least 2"
        )
    if grpo.batch_multiplier != 1 and not grpo.use_dynamic_sampling:
        yield "grpo.batch_multiplier needs grpo.use_dynamic_sampling=true; set 1"


def _lengths(recipe: Recipe) -> Iterator[str]:
    section, policy = recipe.thinkprune, recipe.policy
    limits, total, prompt = section.limits, policy.max_total_sequence_length, recipe.data.max_input_seq_length
    if any(later >= earlier for earlier, later in pairwise(limits)):
        yield f"thinkprune.limits = {limits}: each round's limit must be below the one before"
    for name, limit in (("policy.generation.max_new_tokens", policy.generation.max_new_tokens),
                        ("the largest of thinkprune.limits", max(limits))):  # fmt: skip
        if prompt + limit > total:
            yield (
                f"data.max_input_seq_length = {prompt} and {name} = {limit} make {prompt + limit} tokens, "
                f"more than policy.max_total_sequence_length = {total}; raise that or remove the key"
            )
    longest = policy.generation.vllm_cfg.max_model_len
    if longest < total:
        yield (
            f"policy.generation.vllm_cfg.max_model_len = {longest} is below "
            f"policy.max_total_sequence_length = {total}: responses would be cut early; remove the key"
        )
    if section.long_limit is not None and section.long_limit < max(limits):
        yield (
            f"thinkprune.long_limit = {section.long_limit} is below the largest of thinkprune.limits; "
            f"raise it to {max(limits)} or more"
        )
    if section.control.enabled and section.control.limit is None and section.long_limit is None:
        yield "thinkprune.control.enabled needs thinkprune.control.limit or thinkprune.long_limit"
    if section.prompt_family == "plain" and section.length_hint:
        yield "thinkprune.prompt_family plain has no system prompt; set thinkprune.length_hint=false"


def _sampling(recipe: Recipe) -> Iterator[str]:
    generation = recipe.policy.generation
    if generation.top_p < 1:
        yield (
            f"policy.generation.top_p = {generation.top_p:g} in training: the loss is about the whole "
            "distribution, so samples from part of it are biased; set 1"
        )
    if generation.top_k not in (None, -1):
        yield f"policy.generation.top_k = {generation.top_k} in training: set null; see top_p"
    if generation.temperature <= 0:
        yield "policy.generation.temperature = 0 makes all responses of a group equal; set 1"


def _optimizer(recipe: Recipe) -> Iterator[str]:
    megatron, precision = recipe.policy.megatron_cfg, recipe.policy.precision
    optimizer, scheduler = megatron.optimizer, megatron.scheduler
    path = "policy.megatron_cfg"
    if (optimizer.bf16, optimizer.fp16) != (precision == "bfloat16", precision == "float16"):
        yield f"{path}.optimizer.bf16 and fp16 contradict policy.precision = {precision}; remove both keys"
    if scheduler.lr_decay_style != "constant" and scheduler.lr_decay_iters is None:
        yield f"{path}.scheduler.lr_decay_style {scheduler.lr_decay_style} needs lr_decay_iters"
    elif scheduler.lr_decay_style != "constant" and optimizer.min_lr > optimizer.lr:
        yield f"{path}.optimizer.min_lr = {optimizer.min_lr:g} is above lr = {optimizer.lr:g}"
    decay = scheduler.lr_decay_iters
    if decay is not None and scheduler.lr_warmup_iters >= decay:
        yield f"{path}.scheduler.lr_warmup_iters must be below lr_decay_iters = {decay}"
    if scheduler.lr_warmup_iters and scheduler.lr_warmup_init > optimizer.lr:
        yield f"{path}.scheduler.lr_warmup_init = {scheduler.lr_warmup_init:g} is above lr = {optimizer.lr:g}"
    if recipe.policy.logprob_chunk_size is not None and not megatron.defer_fp32_logits:
        yield f"policy.logprob_chunk_size needs {path}.defer_fp32_logits=true; remove the second key"


def _backend(recipe: Recipe) -> Iterator[str]:
    policy = recipe.policy
    if not policy.megatron_cfg.enabled or policy.dtensor_cfg.enabled:
        yield (
            "ThinkPrune trains on Megatron-Core: set policy.megatron_cfg.enabled=true and "
            "policy.dtensor_cfg.enabled=false"
        )
    if policy.optimizer is not None or policy.scheduler is not None:
        yield (
            "policy.optimizer and policy.scheduler are for the DTensor backend; set both to null and use "
            "policy.megatron_cfg.optimizer and policy.megatron_cfg.scheduler"
        )
    if recipe.on_policy_distillation is not None:
        yield "on_policy_distillation: ThinkPrune does not distil; set null"
    if policy.reward_model_cfg is not None and policy.reward_model_cfg.enabled:
        yield "policy.reward_model_cfg: ThinkPrune trains no reward model; remove the section"
    packing, dynamic = policy.sequence_packing, policy.dynamic_batching
    if packing.enabled and dynamic.enabled:
        yield "policy.sequence_packing and policy.dynamic_batching exclude each other; disable one"
    if dynamic.enabled and policy.megatron_cfg.pipeline_model_parallel_size > 1:
        yield "policy.dynamic_batching needs pipeline_model_parallel_size 1; use policy.sequence_packing"
    for name, part in (("sequence_packing", packing), ("dynamic_batching", dynamic)):
        for key in ("train_mb_tokens", "logprob_mb_tokens"):
            if part.enabled and getattr(part, key) < policy.max_total_sequence_length:
                yield (
                    f"policy.{name}.{key} = {getattr(part, key)} is below policy.max_total_sequence_length = "
                    f"{policy.max_total_sequence_length}: the longest sequence does not fit; remove the key"
                )


def model_problem(model: str) -> str | None:
    """Return why `model` can be neither a model folder nor a hub id; None when it is or may be one."""
    if not model.strip():
        return "is empty: give a model folder or a hub id such as Qwen/QwQ-32B"
    folder = os.path.expanduser(model)
    if is_folder(folder):
        return None
    shown = repr(model) if len(model) <= 120 else f"{model[:100]!r}... ({len(model)} characters)"
    if is_file(folder):
        return f"= {shown} is a file: give the folder it is in"
    if _HUB_ID.fullmatch(model):
        return None
    return (
        f"= {shown}: there is no such folder, and it is not a hub id such as Qwen/QwQ-32B; correct the path"
    )


def _model(recipe: Recipe) -> Iterator[str]:
    if problem := model_problem(recipe.policy.model_name):
        yield f"policy.model_name {problem}"


def _paths(recipe: Recipe) -> Iterator[str]:
    """Yield a message for each path of data that is given but cannot be one."""
    data, section = recipe.data, recipe.thinkprune
    found = {
        f"data.{name}.{number}.data_path": one.data_path
        for name, sets in (("train", data.train), ("validation", data.validation or []))
        for number, one in enumerate(sets)
    }
    found["thinkprune.report_data"] = section.report_data
    if section.warmup is not None:
        found["thinkprune.warmup.data_path"] = section.warmup.data_path
        found["thinkprune.warmup.validation_path"] = section.warmup.validation_path
    for path, value in found.items():
        if value is not None and not value.strip():
            yield f"{path} is empty: give a file, a folder or a hub id, or remove the key"
        elif value is not None and "\0" in value:
            yield f"{path} = {value!r} cannot be a path"


def _run(recipe: Recipe) -> Iterator[str]:
    seed, metric = recipe.grpo.seed, recipe.checkpointing.metric_name
    if seed >> _SEED_BITS:
        yield f"grpo.seed = {seed} is too large; give a number below 2**{_SEED_BITS}"
    if metric is not None and not _METRIC.fullmatch(metric):
        yield (
            f"checkpointing.metric_name = {metric!r}: use val:accuracy, val:mean_tokens, train: and a metric "
            "of metrics.jsonl such as train:reward_mean, or null for the newest"
        )


def _notes(recipe: Recipe) -> Iterator[str]:
    grpo, save = recipe.grpo, recipe.checkpointing.save_period
    if not recipe.data.validation:
        yield "no data.validation: nothing is validated, and `thinkprune prune` has nothing to select by"
    elif grpo.val_period == 0:
        yield "grpo.val_period = 0: only the first and last step are validated, if at all"
    elif save % grpo.val_period:
        yield (
            f"checkpoints every {save} steps but validation every {grpo.val_period}: checkpoints that were "
            "not validated cannot be selected"
        )
    if not recipe.checkpointing.enabled:
        yield "checkpointing.enabled is false: a run that ends early starts over"
    elif not recipe.checkpointing.save_optimizer:
        yield "checkpointing.save_optimizer is false: a resumed run starts with a fresh optimizer"
    limits, limit = recipe.thinkprune.limits, recipe.policy.generation.max_new_tokens
    if limit != limits[0]:
        yield f"`thinkprune train` runs at max_new_tokens = {limit}; `thinkprune prune` starts at {limits[0]}"


def _selection_notes(recipe: Recipe, *, engine: str) -> Iterator[str]:
    """Yield a note where the rule between rounds would compare accuracies within different limits."""
    section = recipe.thinkprune
    each_its_own = engine == "nemo-rl" or section.long_limit is None
    several = len(section.limits) > 1 and bool(recipe.data.validation)
    if several and each_its_own and section.selection.baseline == "first_round":
        other = "" if engine == "nemo-rl" else ", or thinkprune.long_limit to measure all rounds at one limit"
        yield (
            "thinkprune.selection.baseline = first_round: accuracy is measured within the limit of each round, so "
            f"`thinkprune prune` would compare accuracy within {section.limits[-1]} tokens with that within "
            f"{section.limits[0]}, too strict or far too lax; set round_start{other}"
        )
