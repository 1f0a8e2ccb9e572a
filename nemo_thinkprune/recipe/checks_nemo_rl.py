"""Checks across keys for the nemo-rl engine: what NeMo-RL v0.7.0 asserts once its processes have started, and slack."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_thinkprune.recipe.derived import room_for
from nemo_thinkprune.recipe.resources import resources_problem, rollout_gpus
from nemo_thinkprune.recipe.schema import Recipe

_ACCURACY_TP = (
    4  # from this tensor parallel size on, batch sizes change log-probabilities (NeMo-RL issue 1287)
)


def check_nemo_rl(recipe: Recipe, *, on_cpu: bool = False) -> Iterator[str]:
    """Yield a message for each combination that NeMo-RL refuses or gets wrong; vLLM's are no matter on a CPU."""
    yield from _slack(recipe)
    yield from _updates(recipe)
    yield from _reward(recipe)
    yield from _megatron(recipe)
    if on_cpu:
        return
    if problem := resources_problem(recipe):
        yield problem
    else:
        yield from _engines(recipe)
    yield from _vllm(recipe)
    yield from _asynchronous(recipe)


def _slack(recipe: Recipe) -> Iterator[str]:
    """NeMo-RL takes a finished response for truncated when prompt and response fill the sequence (rollouts.py)."""
    prompt, total = recipe.data.max_input_seq_length, recipe.policy.max_total_sequence_length
    limits = (recipe.policy.generation.max_new_tokens, *recipe.thinkprune.limits)
    longest = prompt + max(limits)
    if longest == total:
        yield (
            f"data.max_input_seq_length = {prompt} and the largest limit = {max(limits)} make {longest} tokens, all "
            f"of policy.max_total_sequence_length = {total}: NeMo-RL takes a response that fills the sequence for "
            f"truncated even if it is finished; set policy.max_total_sequence_length={room_for(longest)}"
        )


def _updates(recipe: Recipe) -> Iterator[str]:
    grpo, policy = recipe.grpo, recipe.policy
    total = grpo.num_prompts_per_step * grpo.num_generations_per_prompt
    update = policy.train_global_batch_size
    if total != update and total % update == 0:
        yield (
            f"policy.train_global_batch_size = {update} is not grpo.num_prompts_per_step x "
            f"num_generations_per_prompt = {grpo.num_prompts_per_step} x {grpo.num_generations_per_prompt} = {total}: "
            "ThinkPrune makes one update for each rollout batch; remove the key"
        )
    tp, train, logprob = (
        policy.megatron_cfg.tensor_model_parallel_size,
        policy.train_micro_batch_size,
        policy.logprob_batch_size,
    )
    if tp >= _ACCURACY_TP and train != logprob and not recipe.loss_fn.force_on_policy_ratio:
        yield (
            f"policy.train_micro_batch_size = {train} and policy.logprob_batch_size = {logprob} differ at tensor "
            f"parallel size {tp}, where the batch size changes log-probabilities; remove policy.logprob_batch_size, or "
            "set loss_fn.force_on_policy_ratio=true"
        )


def _reward(recipe: Recipe) -> Iterator[str]:
    if recipe.loss_fn.use_kl_in_reward and recipe.grpo.adv_estimator.name != "reinforce_plus_plus":
        yield (
            "loss_fn.use_kl_in_reward: NeMo-RL's grpo estimator leaves the KL term out altogether; set false, or "
            "grpo.adv_estimator.name=reinforce_plus_plus"
        )


def _megatron(recipe: Recipe) -> Iterator[str]:
    """Yield messages on what NeMo-RL's Megatron set-up asserts (models/megatron/setup.py, lm_policy.py)."""
    policy, megatron = recipe.policy, recipe.policy.megatron_cfg
    optimizer = megatron.optimizer
    if megatron.context_parallel_size > 1 and not policy.sequence_packing.enabled:
        yield "policy.megatron_cfg.context_parallel_size above 1 needs policy.sequence_packing.enabled=true"
    if optimizer.optimizer_cpu_offload and optimizer.optimizer_offload_fraction != 1:
        yield (
            "policy.megatron_cfg.optimizer.optimizer_cpu_offload: NeMo-RL moves all of the optimizer or none; set "
            "policy.megatron_cfg.optimizer.optimizer_offload_fraction=1.0"
        )
    if policy.draft.enabled and policy.sequence_packing.enabled:
        yield "policy.draft.enabled excludes policy.sequence_packing; disable one"


def _engines(recipe: Recipe) -> Iterator[str]:
    """Yield a message when vLLM engines cannot be laid out over the GPUs that generate."""
    gpus, vllm = rollout_gpus(recipe), recipe.policy.generation.vllm_cfg
    size = vllm.tensor_parallel_size * vllm.pipeline_parallel_size
    whole_nodes = size % gpus.per_node == 0 and gpus.count % size == 0
    if gpus.per_node % size and not whole_nodes:
        yield (
            f"policy.generation.vllm_cfg: an engine of tensor x pipeline parallel size "
            f"{vllm.tensor_parallel_size} x {vllm.pipeline_parallel_size} = {size} fits neither evenly into a node nor "
            f"into whole nodes of the {gpus} GPUs that generate; set tensor_parallel_size to a divisor of "
            f"{gpus.per_node}"
        )


def _vllm(recipe: Recipe) -> Iterator[str]:
    path, vllm, loss = "policy.generation.vllm_cfg", recipe.policy.generation.vllm_cfg, recipe.loss_fn
    if vllm.pipeline_parallel_size > 1 and not vllm.async_engine:
        yield f"{path}.pipeline_parallel_size above 1 needs {path}.async_engine=true"
    if vllm.expert_parallel_size > 1:
        yield f"{path}.expert_parallel_size = {vllm.expert_parallel_size}: models here are dense; set 1"
    if vllm.precision == "fp8" and not loss.use_importance_sampling_correction:
        yield f"{path}.precision fp8 needs loss_fn.use_importance_sampling_correction=true"
    if vllm.kv_cache_dtype != "auto":
        wanted = {
            f"{path}.precision=fp8": vllm.precision != "fp8",
            f"{path}.async_engine=false": vllm.async_engine,
            "policy.megatron_cfg.pipeline_model_parallel_size=1": (
                recipe.policy.megatron_cfg.pipeline_model_parallel_size > 1
            ),
        }
        if missing := [setting for setting, wrong in wanted.items() if wrong]:
            yield f"{path}.kv_cache_dtype {vllm.kv_cache_dtype} needs {', '.join(missing)}; or set auto"


def _asynchronous(recipe: Recipe) -> Iterator[str]:
    """Yield messages on what the asynchronous trainer needs (async_grpo_train, examples/run_grpo.py)."""
    asynchronous, generation = recipe.grpo.async_grpo, recipe.policy.generation
    if not asynchronous.enabled:
        return
    needed = {
        "loss_fn.use_importance_sampling_correction=true, since responses are older than the policy": (
            not recipe.loss_fn.use_importance_sampling_correction
        ),
        "policy.generation.colocated.enabled=false with GPUs of its own in policy.generation.colocated.resources": (
            generation.colocated.enabled
        ),
        "policy.generation.vllm_cfg.async_engine=true": not generation.vllm_cfg.async_engine,
        "grpo.async_grpo.max_trajectory_age_steps of at least 1": asynchronous.max_trajectory_age_steps < 1,
        "data_plane=null: the data plane has a trainer of its own": (
            recipe.data_plane is not None and recipe.data_plane.enabled
        ),
    }
    for setting, missing in needed.items():
        if missing:
            yield f"grpo.async_grpo.enabled needs {setting}"
