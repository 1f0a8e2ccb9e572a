"""A recipe as the values of NeMo-RL's MasterConfig: the recipe's own keys, and what only a run knows filled in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_thinkprune.cluster.data_plan import DataPlan, training_entry, validation_entry
from nemo_thinkprune.cluster.names import ENVIRONMENT, VALIDATION_ENVIRONMENT
from nemo_thinkprune.recipe.load import to_dict
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.training.job import Job

METRICS = {"val:mean_tokens": "val:avg_length"}
"""Our names of metrics and NeMo-RL's."""


def master_config(job: Job, plan: DataPlan, *, end_ids: Sequence[int]) -> dict[str, Any]:
    """The dict that MasterConfig is made of.

    `end_ids`: tokens that end a response, the same as on the local engine. What differs from the recipe: paths
    are absolute, data sets and environments are ours, prompts come in the ledger's order (so NeMo-RL neither
    shuffles nor counts epochs), validation takes every row, and a KL weight below zero loses its sign, which
    the driver gives back to the loss function.
    """
    config = to_dict(job.recipe)
    config["grpo"] |= _grpo(job.recipe, plan)
    config["loss_fn"]["reference_policy_kl_penalty"] = abs(job.recipe.loss_fn.reference_policy_kl_penalty)
    config["policy"] |= _policy(job)
    config["policy"]["generation"] |= _generation(job, end_ids)
    # A run may be continued for more or fewer steps; Megatron otherwise insists on those it was saved with.
    config["policy"]["megatron_cfg"]["scheduler"]["override_opt_param_scheduler"] = True
    config["data"] |= _data(job)
    config["env"] = _environments(job.recipe)
    config["checkpointing"] |= _checkpointing(job, plan)
    for section in ("policy", "checkpointing"):  # setup() copies the second over the first
        config[section].pop("pretrained_checkpoint", None)
    if (start := _start(job)) is not None:
        config["policy"]["pretrained_checkpoint"] = start
    config["logger"]["log_dir"] = _inside(job.run_dir, job.recipe.logger.log_dir)
    return _on_cpu(config, job) if job.on_cpu else config


def _grpo(recipe: Recipe, plan: DataPlan) -> dict[str, Any]:
    batch = min(recipe.grpo.val_batch_size or plan.validation_rows, plan.validation_rows or 1)
    batch = max(1, batch)
    return {
        "max_num_epochs": 1,
        "max_num_steps": plan.steps,
        "val_batch_size": batch,
        # validate() runs floor(max_val_samples / val_batch_size) batches
        "max_val_samples": -(-plan.validation_rows // batch) * batch,
        "val_period": recipe.grpo.val_period if plan.validation_rows else 0,
        "val_at_start": recipe.grpo.val_at_start and plan.validation_rows > 0,
        "val_at_end": recipe.grpo.val_at_end and plan.validation_rows > 0,
    }


def _policy(job: Job) -> dict[str, Any]:
    model = _model(job)
    return {
        "model_name": model,
        "tokenizer": job.recipe.policy.tokenizer.model_dump() | {"name": model},
    }


def _model(job: Job) -> str:
    """What every node finds: a hub id as it is, as the head alone has the files of `job.model` then; else a folder."""
    name = job.recipe.policy.model_name
    return job.model if job.on_cpu or os.path.isdir(os.path.expanduser(name)) else name


def _start(job: Job) -> dict[str, str] | None:
    """Weights in the place of the model's own: those a round hands over, else the recipe's."""
    if job.init_weights is not None:
        return {"path": str(job.init_weights), "format": "megatron_bridge"}
    given = job.recipe.policy.pretrained_checkpoint
    if given is None:
        return None
    return {"path": os.path.abspath(os.path.expanduser(given.path)), "format": given.format}


def _generation(job: Job, end_ids: Sequence[int]) -> dict[str, Any]:
    measured = job.recipe.thinkprune.validation
    return {
        "max_new_tokens": job.limit,
        "stop_token_ids": list(end_ids),
        # required after v0.7.0, whose validate() samples as training does
        "val_temperature": measured.temperature,
        "val_top_p": measured.top_p,
        "val_top_k": measured.top_k,
    }


def _data(job: Job) -> dict[str, Any]:
    shared: dict[str, Any] = {"tokenizer": job.model, "limit": job.limit}
    return {
        # one section each, not a list: NeMo-RL looks for env_name in sections only
        "train": training_entry(job.recipe, env_name=ENVIRONMENT, **shared),
        "validation": validation_entry(job.recipe, env_name=VALIDATION_ENVIRONMENT, **shared),
        "default": None,
        "shuffle": False,
    }


def _environments(recipe: Recipe) -> dict[str, Any]:
    scoring, section = recipe.thinkprune.scoring, recipe.thinkprune
    settings = {**scoring.model_dump(), "truncation": section.truncation}
    return {
        ENVIRONMENT: {**settings, "length_reward": section.length_reward.model_dump()},
        VALIDATION_ENVIRONMENT: settings,
    }


def _checkpointing(job: Job, plan: DataPlan) -> dict[str, Any]:
    section = job.recipe.checkpointing
    return {
        "checkpoint_dir": _inside(job.run_dir, section.checkpoint_dir),
        "metric_name": METRICS.get(section.metric_name or "", section.metric_name),
        # null is no number there: as many as there are steps are all
        "keep_top_k": section.keep_top_k or max(1, plan.steps),
        # lm_policy.py refuses to save Megatron weights under any other value
        "model_save_format": None,
    }


def _on_cpu(config: dict[str, Any], job: Job) -> dict[str, Any]:
    """One node of logical GPUs, generation on the training ranks, no loader process."""
    config["cluster"] |= {"num_nodes": 1, "gpus_per_node": job.recipe.world_size}
    config["policy"]["generation"]["backend"] = "megatron"
    config["data"]["num_workers"] = 0
    return config


def _inside(run_dir: Path, folder: str) -> str:
    return str(run_dir.resolve() / folder)
