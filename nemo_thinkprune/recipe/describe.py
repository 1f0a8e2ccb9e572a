"""What a recipe will do, in words and formulas: the objective, the steps, the layout."""

from __future__ import annotations

from pathlib import Path

from nemo_thinkprune.recipe.checks import check_recipe, updates_per_step
from nemo_thinkprune.recipe.checks_layout import training_layout
from nemo_thinkprune.recipe.files import is_file
from nemo_thinkprune.recipe.resources import rollout_gpus, training_gpus
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.section_algorithm import LossFn

_KL = {
    "k1": "log p - log ref",
    "k2": "(log p - log ref)^2 / 2",
    "k3": "ref/p - log(ref/p) - 1",
}


# Of the estimate times p / stop_gradient(p), as the local engine and NeMo-RL take it (see algorithms/kl.py).
_KL_GRADIENT = {
    "k1": "the gradient of KL(p || ref), with noise",
    "k2": "the gradient of KL(p || ref) and a small bias",
    "k3": "the gradient of KL(p || ref)",
}


def describe_check(
    recipe: Recipe, *, engine: str = "local", on_cpu: bool = False, length_reward: str | None = None
) -> str:
    """Check a recipe and return its description with the notes.

    Args:
        recipe: what to describe.
        engine: as `check_recipe`.
        on_cpu: as `check_recipe`.
        length_reward: formula of the reward by length, its settings filled in; None: correctness alone.

    Raises:
        UserError: as `check_recipe`.
    """
    notes = check_recipe(recipe, engine=engine, on_cpu=on_cpu)
    lines = describe(recipe, engine=engine, on_cpu=on_cpu, length_reward=length_reward)
    if notes:
        lines += ["", "notes"] + [f"  {note}" for note in notes]
    return "\n".join(lines)


def describe(
    recipe: Recipe, *, engine: str = "local", on_cpu: bool = False, length_reward: str | None = None
) -> list[str]:
    """Return the description as lines of text; arguments as in `describe_check`."""
    layout = _layout(recipe) if engine == "local" else _cluster_layout(recipe, on_cpu=on_cpu)
    return [
        *_titled("model", [f"{recipe.policy.model_name} in {recipe.policy.precision}", *_weights(recipe)]),
        *_titled("reward", _reward(recipe, length_reward)),
        *_titled("objective, minimised", _objective(recipe)),
        *_titled("batches", _batches(recipe)),
        *_titled("steps", _steps(recipe)),
        *_titled("layout", layout),
        *_titled("rounds (thinkprune prune)", _rounds(recipe, engine=engine)),
    ]


def _titled(title: str, lines: list[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines)]


def _weights(recipe: Recipe) -> list[str]:
    checkpoint = recipe.policy.pretrained_checkpoint
    return [f"weights from {checkpoint.path}"] if checkpoint else []


def _reward(recipe: Recipe, length_reward: str | None) -> list[str]:
    limit = recipe.policy.generation.max_new_tokens
    cut = {
        "zero": "a response cut at the limit " + ("earns 0" if length_reward is None else "counts as wrong"),
        "score_cut_text": "a response cut at the limit is scored as it stands",
    }[recipe.thinkprune.truncation]
    hint = f"; the prompt names {limit} tokens" if recipe.thinkprune.length_hint else ""
    right = f"1 for a correct final answer within {limit} tokens, else 0; {cut}{hint}"
    if length_reward is None:
        return [right]
    names = {
        "L": "response tokens",
        "finished": "1 unless the response was cut",
        "mean, std": "of L over the correct responses of the group",
    }
    used = [f"{name}: {what}" for name, what in names.items() if name.partition(",")[0] in length_reward]
    return [length_reward, f"  correct: {right}", f"  {'; '.join(used)}"]


def _objective(recipe: Recipe) -> list[str]:
    loss, updates = recipe.loss_fn, updates_per_step(recipe)
    mean = (
        "mean over the response tokens of an update"
        if loss.token_level_loss
        else "mean over responses of token means"
    )
    surrogate = _surrogate(loss)
    lines = [f"{mean} of {surrogate}", f"  A = {_advantage(recipe)}"]
    if loss.use_importance_sampling_correction:
        lines.append(f"  times p_old / p_sampler{_truncation(loss)}")
    if loss.ratio_clip_c is not None:
        lines.append(f"  for A < 0 at most {loss.ratio_clip_c:g} |A| (dual clip)")
    weight = loss.reference_policy_kl_penalty
    if weight:
        kind = loss.reference_policy_kl_type
        sign, away = ("+", "") if weight > 0 else ("-", " (pushes away from the reference)")
        lines += [
            f"  {sign} {abs(weight):g} KL, {kind}: {_KL[kind]}{away}",
            "    times p / p_sampler"
            if loss.use_on_policy_kl_approximation
            else f"    times p / stop_gradient(p), NeMo-RL's score-function factor: {_KL_GRADIENT[kind]}",
        ]
    else:
        lines.append("  no KL term, no reference policy")
    if loss.positive_example_nll_weight:
        lines.append(f"  + {loss.positive_example_nll_weight:g} NLL of correct responses")
    if updates == 1 and "clip" in surrogate:
        lines.append(
            "  one update per rollout batch: r is 1 when the gradient is taken, so the clip never acts"
        )
    return lines


def _surrogate(loss: LossFn) -> str:
    low, high = f"{1 - loss.ratio_clip_min:g}", f"{1 + loss.ratio_clip_max:g}"
    if loss.force_on_policy_ratio:
        return "-A r, r = p / stop_gradient(p)"
    if loss.disable_ppo_ratio:
        return "-A log p"
    if loss.use_cispo:
        return f"-A stop_gradient(clip(r, {low}, {high})) log p, r = p / p_old (CISPO)"
    if loss.sequence_level_importance_ratios:
        ratio = "exp(mean over the response of log p - log p_old) (GSPO)"
    else:
        ratio = "p / p_old"
    return f"-min(r A, clip(r, {low}, {high}) A), r = {ratio}"


def _truncation(loss: LossFn) -> str:
    kind, low = loss.truncated_importance_sampling_type, loss.truncated_importance_sampling_ratio_min
    whole = " of the response" if loss.sequence_level_importance_ratios else ""
    bounds = f"[{low or 0:g}, {loss.truncated_importance_sampling_ratio}]"
    effects = {
        "tis": f", clamped to {bounds}",
        "icepop": f", 0 outside {bounds}",
        "seq-mask-tis": f", 0 where its geometric mean over the response is outside {bounds}",
    }
    return whole + effects.get(kind or "", "")


def _advantage(recipe: Recipe) -> str:
    grpo = recipe.grpo
    if grpo.adv_estimator.name != "grpo":
        return f"{grpo.adv_estimator.name} (grpo.adv_estimator)"
    base = "mean of the others" if grpo.use_leave_one_out_baseline else "mean of the group"
    text = f"(reward - {base}) / (std of the group + 1e-6)" if grpo.normalize_rewards else f"reward - {base}"
    if grpo.advantage_clip_low is not None or grpo.advantage_clip_high is not None:
        text += f", clipped to [{grpo.advantage_clip_low}, {grpo.advantage_clip_high}]"
    return text


def _batches(recipe: Recipe) -> list[str]:
    grpo, policy, updates = recipe.grpo, recipe.policy, updates_per_step(recipe)
    total = grpo.num_prompts_per_step * grpo.num_generations_per_prompt
    optimizer, scheduler = policy.megatron_cfg.optimizer, policy.megatron_cfg.scheduler
    plural = "update" if updates == 1 else "updates"
    return [
        f"{grpo.num_prompts_per_step} prompts x {grpo.num_generations_per_prompt} responses = {total} a "
        f"step, {updates} {plural} of {policy.train_global_batch_size}",
        f"AdamW, lr {optimizer.lr:g} {scheduler.lr_decay_style}, warm-up {scheduler.lr_warmup_iters}, betas "
        f"{optimizer.adam_beta1:g}/{optimizer.adam_beta2:g}, weight decay {optimizer.weight_decay:g}, "
        f"gradient norm at most {optimizer.clip_grad:g}",
        f"prompts up to {recipe.data.max_input_seq_length} tokens, sequences up to "
        f"{policy.max_total_sequence_length}",
    ]


def _steps(recipe: Recipe) -> list[str]:
    grpo, rows = recipe.grpo, training_rows(recipe)
    if rows is None:
        count = (
            f"min({grpo.max_num_steps}, {grpo.max_num_epochs} epochs x floor(problems / "
            f"{grpo.num_prompts_per_step})): the number of problems is known once the data is loaded"
        )
    else:
        epoch = rows // grpo.num_prompts_per_step
        steps = min(grpo.max_num_steps, grpo.max_num_epochs * epoch)
        count = (
            f"{steps} = min({grpo.max_num_steps}, {grpo.max_num_epochs} epochs x floor({rows} problems / "
            f"{grpo.num_prompts_per_step}) = {grpo.max_num_epochs * epoch}); fewer if prompts are too long"
        )
    validate = f"validate every {grpo.val_period}" if grpo.val_period else "do not validate between"
    return [count, f"save every {recipe.checkpointing.save_period}, {validate}"]


def training_rows(recipe: Recipe) -> int | None:
    """Return the number of training problems when all data sets are local JSONL files, else None."""
    total = 0
    for dataset in recipe.data.train:
        file = Path(dataset.data_path or "")
        if file.suffix != ".jsonl" or not is_file(file) or dataset.sources:
            return None
        with file.open("rb") as stream:
            rows = sum(1 for line in stream if line.strip())
        total += min(rows, dataset.max_samples or rows)
    return total


def _layout(recipe: Recipe) -> list[str]:
    return [
        f"{_counted(recipe.world_size, 'rank')} = {_parallel(recipe)}, {recipe.cluster.num_nodes} x "
        f"{recipe.cluster.gpus_per_node}, device {recipe.thinkprune.runtime.device}"
    ]


def _cluster_layout(recipe: Recipe, *, on_cpu: bool) -> list[str]:
    """What NeMo-RL starts where."""
    training, rollouts = training_gpus(recipe), rollout_gpus(recipe)
    if on_cpu:
        return [
            "NeMo-RL, synchronous trainer",
            f"{_counted(training.count, 'CPU worker')} = {_parallel(recipe)}, which train and generate",
        ]
    vllm = recipe.policy.generation.vllm_cfg
    size = vllm.tensor_parallel_size * vllm.pipeline_parallel_size
    engine = f"TP {vllm.tensor_parallel_size}"
    if vllm.pipeline_parallel_size > 1:
        engine += f" x PP {vllm.pipeline_parallel_size}"
    where = "the same GPUs" if recipe.policy.generation.colocated.enabled else f"{rollouts} GPUs of their own"
    return [
        f"NeMo-RL, {_trainer(recipe)}",
        f"training: {_counted(training.count, 'GPU')} = {_parallel(recipe)}, {training} (nodes x GPUs)",
        f"rollouts: {_counted(rollouts.count // size, 'vLLM engine')} of {engine} on {where}",
    ]


def _trainer(recipe: Recipe) -> str:
    asynchronous = recipe.grpo.async_grpo
    if asynchronous.enabled:
        age = _counted(asynchronous.max_trajectory_age_steps, "step")
        return f"asynchronous trainer, responses at most {age} old"
    if recipe.data_plane is not None and recipe.data_plane.enabled:
        return (
            f"synchronous trainer with the data plane ({recipe.data_plane.impl}, {recipe.data_plane.backend})"
        )
    return "synchronous trainer"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _parallel(recipe: Recipe) -> str:
    layout = training_layout(recipe)
    context = f" x CP {layout.cp}" if layout.cp > 1 else ""
    return f"TP {layout.tp} x PP {layout.pp} x DP {layout.dp}{context}"


def _rounds(recipe: Recipe, *, engine: str) -> list[str]:
    section = recipe.thinkprune
    lines = [
        f"limits {' > '.join(map(str, section.limits))}; next from the shortest checkpoint whose accuracy "
        f"fell by at most {section.selection.max_relative_drop:.0%} relative to {section.selection.baseline}"
    ]
    local = engine == "local"
    at = f"{section.long_limit} tokens" if section.long_limit and local else "the limit of the round"
    sampling = section.validation if local else recipe.policy.generation
    lines.append(
        f"accuracy at {at}, {section.validation.samples} responses a problem at temperature "
        f"{sampling.temperature:g}, top_p {sampling.top_p:g}"
    )
    if section.control.enabled:
        lines.append(
            f"control: the same steps at {section.control.limit or section.long_limit} tokens throughout"
        )
    return lines
