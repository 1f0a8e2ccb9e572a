"""What a result says of the work, the conditions and the machine: no paths, no host names, no secrets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import weight_map
from nemo_thinkprune.bench.result import Conditions, Machine, Model, StepWork
from nemo_thinkprune.bench.run import Plan, Records
from nemo_thinkprune.bench.steps import recomputed_parts
from nemo_thinkprune.costs.flops import RECOMPUTE_ALL
from nemo_thinkprune.recipe.load import to_dict
from nemo_thinkprune.recipe.resources import rollout_gpus, training_gpus
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.reporting.environment import environment

_PACKAGES = (
    "nemo-thinkprune", "torch", "megatron-core", "transformer-engine", "vllm", "nemo-rl", "ray", "transformers",
    "numpy", "math-verify", "sympy",
)  # fmt: skip
"""Those whose versions can make a step quicker or slower."""


def describe_work(plan: Plan, records: Records, model: ModelConfig) -> StepWork:
    """What every step had to do."""
    recipe = records.job.recipe
    size = recipe.grpo.num_prompts_per_step * recipe.grpo.num_generations_per_prompt
    first: list[str] = records.ledger[1]["problem_ids"]
    return StepWork(
        model=Model(
            architecture=model.architecture,
            hidden_size=model.hidden_size,
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            ffn=model.ffn,
            vocab_size=model.vocab_size,
            tied=model.tied,
            parameters=weight_map(model).parameters,
        ),
        prompts=recipe.grpo.num_prompts_per_step,
        samples=recipe.grpo.num_generations_per_prompt,
        limit=records.job.limit,
        updates=-(-size // recipe.policy.train_global_batch_size),
        reference_logprobs=recipe.loss_fn.reference_policy_kl_penalty != 0,
        fixed_length=plan.fixed_length,
        problems=hashlib.sha256(json.dumps(first).encode()).hexdigest(),
    )


def describe_conditions(plan: Plan, records: Records, *, engine: str, device: str) -> Conditions:
    """How it was done; `device` is cpu or cuda."""
    recipe = records.job.recipe
    megatron, packing = recipe.policy.megatron_cfg, recipe.policy.sequence_packing
    tp, pp = megatron.tensor_model_parallel_size, megatron.pipeline_model_parallel_size
    cp, training = megatron.context_parallel_size, training_gpus(recipe).count
    rolling = rollout_gpus(recipe).count
    apart = not recipe.policy.generation.colocated.enabled
    packed = f"packed to {packing.train_mb_tokens} tokens"
    parts = recomputed_parts(recipe)
    again = "every layer" if parts == RECOMPUTE_ALL else ", ".join(parts)
    return Conditions(
        engine=engine,
        device=device,
        tensor_parallel=tp,
        pipeline_parallel=pp,
        context_parallel=cp,
        data_parallel=training // (tp * pp * cp),
        sequence_parallel=megatron.sequence_parallel,
        training_devices=training,
        rollout_devices=rolling,
        devices=training + rolling if apart else training,
        threads=recipe.thinkprune.runtime.threads_per_rank if device == "cpu" else None,
        precision=recipe.policy.precision,
        batches=packed if packing.enabled else f"{recipe.policy.train_micro_batch_size} sequences",
        recompute=again or "nothing",
        rows=recipe.policy.generation_batch_size,
    )


def describe_machine(gpus: list[str]) -> Machine:
    """Where it ran."""
    facts = environment()
    return Machine(
        system=facts["system"],
        processor=facts["processor"],
        cores=facts["cores"],
        python=facts["python"],
        packages={name: facts["packages"][name] for name in _PACKAGES if name in facts["packages"]},
        gpus=tuple(gpus),
    )


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of all settings but the places of model, data and logs."""
    settings: dict[str, Any] = to_dict(recipe)
    settings.pop("logger")
    settings["policy"] = {k: v for k, v in settings["policy"].items() if k not in ("model_name", "tokenizer")}
    settings["data"] = {
        k: v for k, v in settings["data"].items() if k not in ("train", "validation", "default")
    }
    settings["thinkprune"] = {
        k: v for k, v in settings["thinkprune"].items() if k not in ("warmup", "report_data")
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def recipe_name(recipe: str) -> str:
    """The recipe's name without its place."""
    return Path(recipe).stem
