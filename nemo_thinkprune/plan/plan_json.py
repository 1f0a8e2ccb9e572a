"""A plan as JSON values: every number has its unit in its name."""

from __future__ import annotations

from typing import Any

from nemo_thinkprune.costs.parts import Part, PhaseMemory, worst
from nemo_thinkprune.plan.advice import Advice
from nemo_thinkprune.plan.plan import Plan, unplanned

FORMAT = 1


def plan_values(plan: Plan, *, name: str, source: str, advice: Advice | None) -> dict[str, Any]:
    """The memory of a plan."""
    split, host = plan.split, plan.host
    return {
        "format": FORMAT,
        "recipe": name,
        "engine": plan.engine,
        "model": plan.recipe.policy.model_name,
        "architecture": source,
        "device": plan.gpu.name if plan.gpu else "cpu",
        "capacity_bytes": plan.capacity,
        "layout": {"tp": split.tp, "pp": split.pp, "dp": split.dp, "cp": split.cp,
                   "sequence_parallel": split.sequence_parallel},
        "phases": [_of_plan(plan, one) for one in plan.phases],
        "worst": _worst(plan),
        "generation": _generation(plan),
        "host": [_phase(one) for one in host],
        "host_worst_bytes": worst(host).bytes if host else None,
        "disk": _disk(plan),
        "not_counted": unplanned(plan.recipe),
        "fits": plan.fits,
        "missing_bytes": plan.missing_bytes,
        "shortages": [{"what": one.what, "bytes": one.bytes} for one in plan.shortages],
        "advice": _advice(advice),
    }  # fmt: skip


def _phase(one: PhaseMemory) -> dict[str, Any]:
    return {
        "phase": one.phase,
        "stage": one.stage,
        "bytes": one.bytes,
        "parts": [_part(part) for part in one.parts],
    }


def _of_plan(plan: Plan, one: PhaseMemory) -> dict[str, Any]:
    """A phase; "gpus" is rollout where they do nothing but generate, and there `stage` means nothing."""
    return {**_phase(one), "gpus": "rollout" if plan.apart(one) else "training"}


def _worst(plan: Plan) -> dict[str, Any]:
    most = plan.worst
    return {"phase": most.phase, "stage": most.stage, "bytes": most.bytes, "place": plan.place(most)}


def _part(part: Part) -> dict[str, Any]:
    return {"name": part.name, "bytes": part.bytes, "assumed": part.assumed}


def _disk(plan: Plan) -> dict[str, int | None]:
    """Null: how many checkpoints are kept depends on data that is not there."""
    disk = plan.disk
    known = bool(disk.kept or not disk.checkpoint)
    return {
        "checkpoint_bytes": disk.checkpoint,
        "kept": disk.kept if known else None,
        "round_bytes": disk.of_round if known else None,
    }


def _generation(plan: Plan) -> dict[str, Any] | None:
    engine = plan.generation
    if engine is None:
        return None
    return {
        "budget_bytes": engine.budget,
        "weights_bytes": engine.weights,
        "cache_bytes": engine.cache_bytes,
        "cache_bytes_per_token": engine.token_bytes,
        "cache_blocks": engine.blocks,
        "cache_tokens": engine.tokens,
        "most_sequences": engine.most_sequences,
        "sequences_at_once": engine.sequences,
    }


def _advice(advice: Advice | None) -> dict[str, Any] | None:
    if advice is None:
        return None
    return {
        "overrides": list(advice.overrides),
        "costs": [change.cost for change in advice.changes],
        "worst": _worst(advice.plan),
    }
