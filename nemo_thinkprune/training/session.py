"""What a worker works with: its place in the layout, the policy, the sampler, the tokenizer and the scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig

from checkpoints_tools.hf_config import read_hf_config
from nemo_thinkprune.data.tokenizer import end_tokens, load_tokenizer
from nemo_thinkprune.policy.checkpoint import load_torch_dist
from nemo_thinkprune.policy.device import keep_freed_memory, megatron_device, resolve_device
from nemo_thinkprune.policy.model import ModelOptions
from nemo_thinkprune.policy.parallel import Layout, model_parallel
from nemo_thinkprune.policy.policy import BatchOptions, Policy
from nemo_thinkprune.policy.weight_gather import user_errors
from nemo_thinkprune.policy.weights import load_hf
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rewards.score import Scorer
from nemo_thinkprune.rollout.engine import MegatronEngine
from nemo_thinkprune.rollout.types import RolloutEngine
from nemo_thinkprune.training.clock import Clock, Meter
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.worker import RankContext

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Session:
    """Everything a job needs on this rank; `meter` under a benchmark."""

    job: Job
    recipe: Recipe
    context: RankContext
    layout: Layout
    device: torch.device
    policy: Policy
    engine: RolloutEngine
    tokenizer: Any
    eos_ids: tuple[int, ...]
    scorer: Scorer | None
    meter: Meter | None = None

    def clock(self, seconds: dict[str, float] | None = None) -> Clock:
        """A clock for a step, going on from `seconds`, with the meter there is."""
        return Clock(seconds or {}, self.meter)

    def beat(self, phase: str, step: int, **event: Any) -> None:
        """Tell the supervisor where this rank is."""
        self.context.beat(phase, step, **event)

    def tell_measured(self, step: int, clock: Clock) -> None:
        """Tell the supervisor what the phases of `clock` used, under a benchmark."""
        if self.meter is not None:
            self.beat("measured", step, measured=clock.told())


@contextmanager
def open_session(job: Job, context: RankContext, *, optimizer: OptimizerConfig | None) -> Iterator[Session]:
    """Join the layout, build the policy and load its weights; all of it is taken down on exit.

    `optimizer` None gives a policy that can only be measured.
    """
    recipe = job.recipe
    runtime, megatron = recipe.thinkprune.runtime, recipe.policy.megatron_cfg
    device = resolve_device(runtime.device, context.rank)
    if device.type == "cpu":
        keep_freed_memory()
    with (
        megatron_device(device, threads=runtime.threads_per_rank, seed=recipe.grpo.seed),
        model_parallel(
            rank=context.rank,
            world=context.world,
            rendezvous=context.rendezvous,
            tp=megatron.tensor_model_parallel_size,
            pp=megatron.pipeline_model_parallel_size,
            device=device,
            timeout_s=2 * runtime.stall_timeout_s,
            seed=recipe.grpo.seed,
        ) as layout,
    ):
        with user_errors():
            policy = build_policy(job, layout, device, optimizer, pulse=context.pulse)
        policy.set_heartbeat(context.pulse)
        tokenizer = load_tokenizer(job.model)
        eos_ids = end_tokens(recipe, Path(job.model), tokenizer)
        engine = MegatronEngine(policy, eos_ids=eos_ids, max_rows=recipe.policy.generation_batch_size)
        scorer = make_scorer(recipe) if layout.is_main else None
        try:
            yield Session(job, recipe, context, layout, device, policy, engine, tokenizer, eos_ids, scorer)
        finally:
            if scorer is not None:
                scorer.close()


def make_scorer(recipe: Recipe) -> Scorer:
    """The scorer that the recipe asks for."""
    scoring = recipe.thinkprune.scoring
    return Scorer(
        workers=scoring.workers,
        deadline_s=scoring.deadline_s,
        memory_mb=scoring.memory_mb,
        truncation=recipe.thinkprune.truncation,
    )


def optimizer_config(recipe: Recipe) -> OptimizerConfig:
    """Megatron's optimizer from `policy.megatron_cfg.optimizer`.

    A single data-parallel rank has nothing to share: there the distributed optimizer would only cost copies.
    """
    megatron = recipe.policy.megatron_cfg
    keys = megatron.optimizer
    model_parallel_size = megatron.tensor_model_parallel_size * megatron.pipeline_model_parallel_size
    precision = DTYPES[recipe.policy.precision]
    return OptimizerConfig(
        optimizer=keys.optimizer,
        lr=keys.lr,
        min_lr=keys.min_lr,
        weight_decay=keys.weight_decay,
        adam_beta1=keys.adam_beta1,
        adam_beta2=keys.adam_beta2,
        adam_eps=keys.adam_eps,
        sgd_momentum=keys.sgd_momentum,
        clip_grad=recipe.policy.max_grad_norm,
        bf16=precision == torch.bfloat16,
        fp16=precision == torch.float16,
        params_dtype=precision,
        use_distributed_optimizer=keys.use_distributed_optimizer and recipe.world_size > model_parallel_size,
    )


def model_options(recipe: Recipe) -> ModelOptions:
    """How the recipe wants the network built."""
    megatron = recipe.policy.megatron_cfg
    return ModelOptions(
        dtype=DTYPES[recipe.policy.precision],
        sequence_parallel=megatron.sequence_parallel,
        activation_checkpointing=megatron.activation_checkpointing,
        recompute_granularity=megatron.recompute_granularity,
        recompute_modules=tuple(megatron.recompute_modules or ("core_attn",)),
        layers_in_first_stage=megatron.num_layers_in_first_pipeline_stage,
        layers_in_last_stage=megatron.num_layers_in_last_pipeline_stage,
        grad_reduce_in_fp32=megatron.distributed_data_parallel_config.grad_reduce_in_fp32,
    )


def build_policy(
    job: Job,
    layout: Layout,
    device: torch.device,
    optimizer: OptimizerConfig | None,
    *,
    pulse: Callable[[], None] = lambda: None,
) -> Policy:
    """The policy of a job on this rank, its weights loaded; trainable when there is an optimizer."""
    recipe = job.recipe
    model = read_hf_config(Path(job.model))
    packing = recipe.policy.sequence_packing
    policy = Policy(
        model,
        layout=layout,
        device=device,
        options=model_options(recipe),
        batch=BatchOptions(
            max_tokens=packing.train_mb_tokens if packing.enabled else None,
            max_sequences=None if packing.enabled else recipe.policy.train_micro_batch_size,
            logprob_chunk=recipe.policy.logprob_chunk_size or 1024,
            # imitation has no sampling temperature
            temperature=1.0 if job.kind == "warmup" else recipe.policy.generation.temperature or 1.0,
        ),
        optimizer=optimizer,
    )
    if job.init_weights is None:
        load_hf([policy.network], model, Path(job.model), pulse=pulse)
    else:
        load_torch_dist(policy, job.init_weights, with_optimizer=False)
    policy.make_trainable()
    return policy
