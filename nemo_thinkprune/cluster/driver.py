"""The driver: one process that hands a recipe to NeMo-RL's setup and trainer, and keeps our records of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from nemo_rl.algorithms.grpo import MasterConfig, setup
from nemo_rl.algorithms.loss import ClippedPGLossFn
from nemo_rl.data.utils import setup_response_data
from nemo_rl.models.generation import configure_generation_config

from nemo_thinkprune.cluster.checkpoints import RunCheckpoints
from nemo_thinkprune.cluster.data_plan import DataPlan, data_plan
from nemo_thinkprune.cluster.liveness import Liveness
from nemo_thinkprune.cluster.ray_cluster import ray_cluster
from nemo_thinkprune.cluster.ray_errors import told_plainly
from nemo_thinkprune.cluster.recorder import Recorder
from nemo_thinkprune.cluster.register import register
from nemo_thinkprune.cluster.responses import ResponseTokenizer
from nemo_thinkprune.cluster.resume import prepare
from nemo_thinkprune.cluster.settings import master_config
from nemo_thinkprune.cluster.stopping import StopTraining
from nemo_thinkprune.cluster.trainers import Environments, Parts, policy_factory, run_trainer
from nemo_thinkprune.data.tokenizer import end_tokens, load_tokenizer
from nemo_thinkprune.training.job import JOB_FILE, Job
from nemo_thinkprune.training.worker import RankContext


@dataclass(frozen=True, slots=True)
class Start:
    """All that is known before Ray starts: `config` is NeMo-RL's MasterConfig, `done` the step to go on after."""

    job: Job
    context: RankContext
    liveness: Liveness
    config: Any
    plan: DataPlan
    done: int
    tokenizer: Any
    end_ids: tuple[int, ...]


def run(job: Job, context: RankContext) -> None:
    """Train one round; the supervisor's entry.

    Raises:
        UserError: Something that the user can mend; the supervisor passes it on.
    """
    liveness = Liveness(context)
    with liveness.beating(), context.reporting():
        tokenizer = load_tokenizer(job.model)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        end_ids = end_tokens(job.recipe, Path(job.model), tokenizer)
        plan = data_plan(job.recipe, tokenizer=job.model, limit=job.limit)
        config = MasterConfig(**master_config(job, plan, end_ids=end_ids))
        done = _resume_after(job, context, config, plan)
        if done >= plan.steps:  # ended before: nothing to start Ray for
            return context.beat("start", done, total=plan.steps)
        start = Start(job, context, liveness, config, plan, done, tokenizer, end_ids)
        checkpoints = Path(config.checkpointing["checkpoint_dir"])
        with told_plainly(checkpoints), ray_cluster(on_cpu=job.on_cpu, ranks=job.world_size):
            register()
            _train(start)


def _resume_after(job: Job, context: RankContext, config: Any, plan: DataPlan) -> int:
    """The step to go on after, with run folder and checkpoints made ready; tells what the user should know."""

    def note(text: str) -> None:
        context.beat("resume", 0, note=text)

    for text in plan.notes:
        note(text)
    return prepare(
        job.run_dir,
        Path(config.checkpointing["checkpoint_dir"]),
        limit=job.limit,
        group_size=job.recipe.grpo.num_generations_per_prompt,
        note=note,
    )


def _train(start: Start) -> None:
    """NeMo-RL's own order: generation settings, data and environments, setup, trainer."""
    job, context, plan = start.job, start.context, start.plan
    config, tokenizer = start.config, start.tokenizer
    context.beat("setup", 0, total=plan.steps)
    config.policy["generation"] = configure_generation_config(config.policy["generation"], tokenizer)
    dataset, val_dataset, train_env, validation_env = setup_response_data(tokenizer, config.data, config.env)
    factory = _cpu_policy(job) if job.on_cpu else policy_factory(config)
    parts = Parts.of(setup(config, tokenizer, dataset, val_dataset, policy_factory=factory))
    if job.on_cpu:
        parts.policy_generation = _cpu_generation(parts, tokenizer)
    parts.loss_fn = _signed_loss(job, parts.loss_fn, parts.master_config)
    parts.checkpointer = RunCheckpoints(parts.master_config.checkpointing, job)
    recorder = parts.logger = Recorder(
        parts.logger,
        job=job,
        context=context,
        plan=plan,
        config=parts.master_config,
        drain_train=partial(_drain, train_env),
        drain_validation=partial(_drain, validation_env),
        on_sign=start.liveness.sign,
        settle=getattr(parts.checkpointer, "finalize_pending", None),  # of saving in the background
    )
    recorder.start(start.done)
    try:
        run_trainer(
            parts, ResponseTokenizer(tokenizer, start.end_ids), Environments(train_env, validation_env)
        )
        recorder.finish()
    except StopTraining as stop:
        context.stopped(stop.step)
    finally:
        parts.policy.shutdown()


def _cpu_policy(job: Job) -> Any:
    from nemo_thinkprune.cluster.cpu_policy import policy_factory as cpu_policy

    return cpu_policy(job.run_dir / JOB_FILE)


def _cpu_generation(parts: Parts, tokenizer: Any) -> Any:
    from nemo_thinkprune.cluster.cpu_policy import CpuGeneration

    generation = CpuGeneration(config=parts.master_config.policy, tokenizer=tokenizer, policy=parts.policy)
    # After v0.7.0 setup leaves here what wakes the workers before they sample.
    synchronizer = getattr(parts.policy_generation, "weight_synchronizer", None)
    if synchronizer is not None:
        generation.weight_synchronizer = synchronizer
    return generation


def _signed_loss(job: Job, loss_fn: Any, config: Any) -> Any:
    """The loss with the recipe's own sign of the KL weight.

    `setup` loads the reference model for a positive weight only and would take zeros for its log-probs
    otherwise, so it is shown the magnitude, and the trainer gets a loss with the sign.
    """
    weight = job.recipe.loss_fn.reference_policy_kl_penalty
    if weight >= 0:
        return loss_fn
    return ClippedPGLossFn(config.loss_fn.model_copy(update={"reference_policy_kl_penalty": weight}))


def _drain(environments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the environments have scored since the last call."""
    return [row for actor in set(environments.values()) for row in ray.get(actor.drain.remote())]
