"""A plan as plain text: a table of phases and stages, what the worst of each is made of, verdict and advice."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_thinkprune.costs.parts import GIB, PHASES, PhaseMemory, worst
from nemo_thinkprune.plan.advice import Advice
from nemo_thinkprune.plan.plan import LOCAL, Plan, gib, unplanned
from nemo_thinkprune.plan.time_table import TimePlan, time_lines
from nemo_thinkprune.reporting.table import render

_MOST_STAGES = 8
_ASSUMED = "*"
_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("bytes", 1))


def lines(plan: Plan, *, source: str, time: TimePlan | None, advice: Advice | None) -> list[str]:
    """All of a plan, for a terminal; the verdict comes last."""
    return [
        *_head(plan, source),
        "",
        *_phases(plan),
        "",
        *_parts(plan),
        "",
        *_generation(plan),
        *_host(plan),
        *_disk(plan),
        *_assumed(plan),
        *(["", *time_lines(time)] if time is not None else []),
        "",
        *verdict(plan, advice),
    ]


def verdict(plan: Plan, advice: Advice | None) -> list[str]:
    """Fits or not, by how much, and the smallest change that fits."""
    most = plan.worst
    where = plan.place(most)
    room = plan.capacity - most.bytes
    if plan.fits:
        return [
            f"fits: {gib(room)} to spare at the worst ({where}: {gib(most.bytes)} of {gib(plan.capacity)})"
        ]
    found = [f"does not fit, by {gib(plan.missing_bytes)}; worst: {where}"]
    found += [f"  {one.what}: {gib(one.bytes)} too little" for one in plan.shortages]
    if advice is None:
        return [
            *found,
            "no change that is tried here makes it fit: take more GPUs, larger ones or a smaller model",
        ]
    after = advice.plan
    found.append("the smallest change that fits:")
    found.append("  " + " ".join(_quoted(text) for text in advice.overrides))
    found += [f"  costs: {change.cost}" for change in advice.changes]
    found.append(
        f"  planned again: {gib(after.worst.bytes)} of {gib(after.capacity)} at the worst ({after.place(after.worst)})"
    )
    return found


def _quoted(text: str) -> str:
    return f"'{text}'" if any(sign in text for sign in "[]{} ") else text


def _head(plan: Plan, source: str) -> list[str]:
    split, recipe = plan.split, plan.recipe
    layout = f"TP{split.tp} PP{split.pp} DP{split.dp}" + (f" CP{split.cp}" if split.cp > 1 else "")
    layout += " with sequence parallelism" if split.sequence_parallel else ""
    if plan.engine == LOCAL:
        what = f"the local engine on CPUs: resident memory of one rank, {split.world} on this machine"
    else:
        name = plan.gpu.name if plan.gpu else ""
        what = f"NeMo-RL (the local engine is planned on CPUs alone, not on GPUs): memory of one {name}"
    return [
        f"{recipe.policy.model_name} (architecture: {source})",
        f"{what}; {layout}",
        "phases follow one another and are never added; GiB of 2**30 bytes",
        *(f"NOT counted, what this changes: {setting}" for setting in unplanned(recipe)),
    ]


def _stages(plan: Plan) -> list[int]:
    count = plan.split.pp
    if count <= _MOST_STAGES:
        return list(range(count))
    return sorted({0, 1, plan.worst.stage, count - 2, count - 1})


def _phases(plan: Plan) -> list[str]:
    shown = _stages(plan)
    head = ["phase", *(f"stage {stage}" for stage in shown), "worst"]
    rows = []
    for name in PHASES:
        of_phase = {one.stage: one for one in plan.phases if one.phase == name}
        if of_phase:
            most = worst(list(of_phase.values()))
            if plan.apart(most):
                rows.append([plan.place(most), *("" for _ in shown), _number(most.bytes)])
                continue
            rows.append([name, *(_number(of_phase[stage].bytes) for stage in shown), _number(most.bytes)])
    rows.append(["there is", *("" for _ in shown), _number(plan.capacity)])
    return render(head, rows).splitlines()


def _parts(plan: Plan) -> list[str]:
    found = ["what the worst stage of each phase holds:"]
    for name in PHASES:
        of_phase = [one for one in plan.phases if one.phase == name]
        if of_phase:
            found.append(_made_of(plan, worst(of_phase)))
    return found


def _made_of(plan: Plan, one: PhaseMemory) -> str:
    parts = [
        f"{part.name} {_small(part.bytes)}{_ASSUMED if part.assumed else ''}"
        for part in sorted(one.parts, key=lambda part: -part.bytes)
    ]
    return f"  {plan.place(one)}: {', '.join(parts)}"


def _generation(plan: Plan) -> Iterator[str]:
    engine = plan.generation
    if engine is None:
        return
    config = plan.recipe.policy.generation.vllm_cfg
    yield (
        f"KV cache: {engine.blocks} blocks of 16 tokens = {engine.tokens} tokens at {engine.token_bytes} bytes on each "
        f"GPU; {engine.sequences} sequences of {config.max_model_len} tokens at once in each engine of "
        f"{config.tensor_parallel_size * config.pipeline_parallel_size} GPUs"
    )


def _host(plan: Plan) -> Iterator[str]:
    if host := plan.host:
        most = worst(host)
        parts = ", ".join(f"{part.name} {_small(part.bytes)}" for part in most.parts)
        yield f"host memory of a node: {gib(most.bytes)} ({most.phase}: {parts}); processes themselves not counted"


def _disk(plan: Plan) -> Iterator[str]:
    disk = plan.disk
    if not disk.checkpoint:
        yield "checkpoints: none, checkpointing.enabled is false"
        return
    kept = (
        f"{disk.kept} are kept, {_gb(disk.of_round)}"
        if disk.kept
        else "how many are kept depends on the data"
    )
    period = plan.recipe.checkpointing.save_period
    yield f"checkpoints on disk: {_gb(disk.checkpoint)} each, every {period} steps; {kept}"


def _gb(count: int) -> str:
    """Bytes of a disk in its makers' units."""
    unit, size = next((unit, size) for unit, size in _UNITS if count >= size or size == 1)
    return f"{count / size:.3g} {unit}"


def _assumed(plan: Plan) -> list[str]:
    named: dict[str, str] = {}
    for one in plan.phases:
        named |= {part.name: f"{_small(part.bytes)}: {part.assumed}" for part in one.parts if part.assumed}
    kinds = {name: "" if ": measured" in text else "assumed, " for name, text in named.items()}
    return [f"{_ASSUMED} {kinds[name]}{name} {text}" for name, text in sorted(named.items())]


def _number(count: int) -> str:
    return f"{count / GIB:.1f}" if count >= GIB else f"{count / GIB:.2f}"


def _small(count: int) -> str:
    """GiB with enough digits to tell what it is."""
    return f"{count / GIB:.2f}" if count >= GIB / 100 else f"{count / GIB:.4f}"
