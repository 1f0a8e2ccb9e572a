"""What the nemo-rl engine cannot do: settings that NeMo-RL would refuse late, or that our part of it replaces.

A setting missing here is either honoured or changes speed and memory only.  References are to NeMo-RL v0.7.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from nemo_thinkprune.recipe.local_support import POLICY_RESTRICTIONS, unsupported_followers
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.support import RECORDED, Restriction, refused, refused_in_data, value_at

_WHO = "the nemo-rl engine"
_CPU_WHO = "the CPU worker (--on-cpu)"
_GYM = "NeMo-RL has it for NeMo-Gym environments only; set null"
_TEMPLATE = "prompts are made with the tokenizer files of policy.model_name; put it there and remove the key"

RESTRICTIONS = (
    Restriction("grpo.max_rollout_turns", (1,), "a problem is answered in one turn; set 1"),
    Restriction("grpo.use_dynamic_sampling", (False,), f"{RECORDED}; set false"),
    Restriction(
        "grpo.reward_shaping.enabled", (False,), "use thinkprune.truncation and thinkprune.length_reward"
    ),
    Restriction("grpo.reward_scaling.enabled", (False,), "rewards are 0 and 1; set false"),
    Restriction("grpo.invalid_tool_call_advantage", (None,), _GYM),
    Restriction("grpo.malformed_thinking_advantage", (None,), _GYM),
    Restriction(
        "grpo.adv_estimator.name", ("grpo", "reinforce_plus_plus"), "gdpo needs several rewards; set grpo"
    ),
    Restriction(
        "loss_fn.positive_example_nll_weight",
        (0.0,),
        "its GRPO trainers give the loss no rewards, so the term would silently be left out; set 0",
    ),
    Restriction("policy.tokenizer.chat_template", (None,), _TEMPLATE),
    Restriction("policy.tokenizer.chat_template_kwargs", (None, {}), _TEMPLATE),
    Restriction(
        "policy.tokenizer.use_processor", (None, False), "models here read text alone; remove the key"
    ),
    Restriction(
        "policy.generation.backend", ("vllm",), "lengths and ends of responses are known with vLLM; set vllm"
    ),
    Restriction(
        "policy.generation.stop_strings",
        (None, []),
        "a finished response is told by its end token; use policy.generation.stop_token_ids",
    ),
    Restriction("data.shuffle", (True,), "every epoch is a seeded permutation; set true"),
    Restriction("data.use_multiple_dataloader", (False,), "data sets are joined; set false"),
    Restriction("data.num_prompts_per_dataloader", (None,), "data sets are joined; remove the key"),
    Restriction("data.custom_dataloader", (None,), f"{RECORDED}; remove the key"),
    Restriction(
        "thinkprune.length_reward.name",
        ("none", "l1_exact", "l1_max", "dapo_overlong"),
        "it compares a response with its group, and NeMo-RL's asynchronous rollouts are scored one by one; "
        "use another reward by length or the local engine",
    ),
)

DATASET_RESTRICTIONS = (
    Restriction("processor", (None, "thinkprune"), "prompts are built by thinkprune.prompt_family; remove the key"),
    Restriction("download_dir", (None,), "data come from data_path, or from the hub into its cache; remove the key"),
)  # fmt: skip

CPU_RESTRICTIONS = (
    Restriction(
        "grpo.async_grpo.enabled",
        (False,),
        "it runs the synchronous trainer; set grpo.async_grpo.enabled=false and what belongs to it "
        "(policy.generation.colocated.enabled=true)",
    ),
    Restriction("data_plane.enabled", (None, False), "it runs the synchronous trainer; set data_plane=null"),
    Restriction("grpo.calculate_advantages_on_gpu", (None, False), "there is no GPU; remove the key"),
    Restriction(
        "policy.generation.mcore_generation_config.async_engine",
        (False,),
        "it generates in batches; set false",
    ),
    *POLICY_RESTRICTIONS,
)

# Absent from the CPU worker, where they are switched on in vain.
CPU_TUNING = (
    "policy.dynamic_batching.enabled",
    "policy.offload_optimizer_for_logprob",
    "policy.megatron_cfg.optimizer.optimizer_cpu_offload",
    "policy.generation.vllm_cfg.async_engine",
    "policy.generation.vllm_kwargs",
    "logger.monitor_gpus",
)

# Paths that NeMo-RL opens as they are, in a process whose working directory is not that of the command.
_RAW_PATHS = (
    "logger.mlflow.tracking_uri",
    "logger.mlflow.artifact_location",
    "policy.generation.vllm_cfg.tool_parser_plugin",
    "policy.generation.vllm_cfg.reasoning_parser_plugin",
)

_TRAIN_METRICS = ("train:reward",)
_METRICS = ("val:accuracy", "val:mean_tokens", *_TRAIN_METRICS, None)


def unsupported(recipe: Recipe, *, on_cpu: bool = False) -> Iterator[str]:
    """Yield a message for each setting that the engine, or with `on_cpu` its CPU worker, cannot honour."""
    yield from refused(recipe, RESTRICTIONS, who=_WHO)
    yield from refused_in_data(recipe, who=_WHO, more=DATASET_RESTRICTIONS)
    yield from _shaped_leave_one_out(recipe)
    yield from _names(recipe)
    yield from _raw_paths(recipe)
    if on_cpu:
        yield from refused(recipe, CPU_RESTRICTIONS, who=_CPU_WHO)
        yield from unsupported_followers(recipe)


def _shaped_leave_one_out(recipe: Recipe) -> Iterator[str]:
    estimator = recipe.grpo.adv_estimator
    divided = (
        estimator.name == "grpo" and estimator.normalize_rewards and estimator.use_leave_one_out_baseline
    )
    if divided and recipe.thinkprune.length_reward.name != "none":
        yield (
            "grpo.use_leave_one_out_baseline is true with thinkprune.length_reward: NeMo-RL divides by a rounding "
            "error where the others of a group earned the same, and advantages reach 1e5; set false"
        )


def _names(recipe: Recipe) -> Iterator[str]:
    """Yield messages on names that mean something else, or nothing, here."""
    policy, metric = recipe.policy, recipe.checkpointing.metric_name
    if policy.tokenizer.name != policy.model_name:
        yield (
            f"policy.tokenizer.name = {policy.tokenizer.name!r}: the tokenizer is that of policy.model_name here; "
            "remove the key"
        )
    for name in recipe.env:
        if name != "thinkprune":
            yield (
                f"env.{name}: {_WHO} scores every response in its own environment, thinkprune; remove the section"
            )
    if metric not in _METRICS:
        yield (
            f"checkpointing.metric_name = {metric!r}: NeMo-RL ends the run at the first checkpoint when it has no "
            "such metric; use val:accuracy, val:mean_tokens, train:reward or null"
        )


def _raw_paths(recipe: Recipe) -> Iterator[str]:
    for path in _RAW_PATHS:
        value = value_at(recipe, path)
        if value and "://" not in value and not value.startswith("/"):
            yield (
                f"{path} = {value!r} is relative, and NeMo-RL would look for it in the working directory of another "
                "process; give an absolute path"
            )


def ignored(recipe: Recipe, *, on_cpu: bool = False) -> Iterator[str]:
    """Yield a note for each setting that is allowed and does less here than on the local engine."""
    yield from _validation_notes(recipe)
    section = recipe.thinkprune
    if section.report_data is not None and not on_cpu:
        limit = section.long_limit or recipe.policy.generation.max_new_tokens
        yield (
            f"thinkprune.report_data is not evaluated by this engine; afterwards: thinkprune eval CHECKPOINT "
            f"--data {section.report_data} --limit {limit} -n {section.validation.samples}"
        )
    if section.runtime.device != "auto" and not on_cpu:
        yield f"thinkprune.runtime.device = {section.runtime.device} is for the local engine; NeMo-RL trains on GPUs"
    if "thinkprune" in recipe.env:
        yield "env.thinkprune.num_workers is not read: thinkprune.scoring.workers is the number of scoring workers"
    yield from _trainer_notes(recipe)
    if on_cpu:
        for path in CPU_TUNING:
            if value_at(recipe, path):
                yield f"{path}: changes speed or memory only; {_CPU_WHO} ignores it"


def _trainer_notes(recipe: Recipe) -> Iterator[str]:
    plane, asynchronous = recipe.data_plane, recipe.grpo.async_grpo
    if plane is not None and plane.enabled:
        yield (
            "data_plane.enabled: this trainer was never run with this program; it needs TransferQueue and an installed "
            "nemo-rl, and data_plane=null trains the same"
        )
    if plane is not None and plane.enabled and recipe.grpo.calculate_advantages_on_gpu:
        yield "grpo.calculate_advantages_on_gpu has no effect with data_plane.enabled"
    old = asynchronous.enabled and asynchronous.max_trajectory_age_steps > 1
    if old and not asynchronous.in_flight_weight_updates:
        yield (
            "grpo.async_grpo.max_trajectory_age_steps above 1 gains nothing without in_flight_weight_updates=true"
        )


def _validation_notes(recipe: Recipe) -> Iterator[str]:
    """Yield a note where NeMo-RL's validation, which has no settings of its own, is not what the recipe says."""
    if not recipe.data.validation:
        return
    generation, section, wanted = recipe.policy.generation, recipe.thinkprune, recipe.thinkprune.validation
    keys = ("temperature", "top_p", "top_k")
    differing = [
        f"thinkprune.validation.{key} = {getattr(wanted, key)}"
        for key in keys
        if getattr(wanted, key) != getattr(generation, key)
    ]
    if section.long_limit not in (None, generation.max_new_tokens):
        differing.append(f"thinkprune.long_limit = {section.long_limit}")
    if differing:
        yield (
            f"NeMo-RL validates as it trains: at the limit of the round, temperature {generation.temperature:g}, "
            f"top_p {generation.top_p:g}; {', '.join(differing)} hold for `thinkprune eval` and the local engine"
        )
