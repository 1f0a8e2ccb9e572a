"""A benchmark as text: where the time of a step goes, how fast tokens are made and trained, how far from the peak."""

from __future__ import annotations

import textwrap

from nemo_thinkprune.bench.phases import CHECKPOINT, LABELS
from nemo_thinkprune.bench.result import PhaseSummary, Result
from nemo_thinkprune.bench.spread import Spread
from nemo_thinkprune.bench.summary import RATES
from nemo_thinkprune.reporting.table import DASH, render

WIDTH = 110
_SOFTWARE = ("torch", "megatron-core", "vllm")
_HEAD = ("phase", "seconds", "quartiles", "min .. max", "share", "CPU s", "peak MiB", "MFU", "HFU")


def result_table(result: Result) -> str:
    """The whole report."""
    return "\n\n".join([_title(result), _phases(result), _rates(result), _remarks(result)])


def _title(result: Result) -> str:
    work, how, machine = result.work, result.conditions, result.machine
    count, sizes = len(result.steps), f"TP{how.tensor_parallel} x PP{how.pipeline_parallel}"
    prompts = sum(step.prompt_tokens for step in result.steps) / count
    responses = sum(step.response_tokens for step in result.steps) / count
    where = (
        ", ".join(sorted(set(machine.gpus)))
        or f"{machine.processor}, {counted(machine.cores, 'core')} usable"
    )
    software = [f"{name} {machine.packages[name]}" for name in _SOFTWARE if name in machine.packages]
    threads = "" if how.threads is None else f", {counted(how.threads, 'thread')} each"
    lines = [
        f"{result.recipe} on {how.engine}: {counted(count, 'step')} measured after {result.warmup} of warm-up",
        f"Work:     {work.model.architecture}, {work.model.parameters:,} parameters; {work.prompts} x {work.samples} "
        f"responses of at most {work.limit} tokens{' (fixed length)' * work.fixed_length}; "
        f"{counted(work.updates, 'update')} a step",
        f"Tokens:   a step has {prompts:,.0f} of prompts and {responses:,.0f} of responses (mean)",
        f"Layout:   {sizes} x CP{how.context_parallel} x DP{how.data_parallel}, {counted(how.devices, 'device')} "
        f"({how.device}{threads}), {how.precision}, {how.batches}; recomputed: {how.recompute}",
        f"Machine:  {'; '.join([where, *software])}",
    ]
    return "\n".join(map(_filled, lines))


def counted(count: int, name: str) -> str:
    """A number of things: ``1 step``, ``3 steps``."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _phases(result: Result) -> str:
    summary = result.summary
    rows = [_row(LABELS[name], phase) for name, phase in summary.phases.items()]
    rows.append(_row("step", summary.step))
    if summary.checkpoint is not None:
        rows.append(_row(f"beside it: {LABELS[CHECKPOINT]}", summary.checkpoint))
    return render(_HEAD, rows)


def _row(name: str, phase: PhaseSummary) -> tuple[str, ...]:
    time = phase.seconds
    return (
        name,
        seconds(time.median),
        f"{seconds(time.lower)} .. {seconds(time.upper)}",
        f"{seconds(time.min)} .. {seconds(time.max)}",
        DASH if phase.share is None else f"{100 * phase.share:.1f}%",
        DASH if phase.cpu_seconds is None else seconds(phase.cpu_seconds.median),
        _memory(phase),
        _share(phase.mfu),
        _share(phase.hfu),
    )


def seconds(value: float) -> str:
    """Seconds with three digits."""
    if value < 0.0005:
        return "0.000"
    return f"{value:,.0f}" if value >= 100 else f"{value:.{max(0, 3 - len(str(int(value))) + (value < 1))}f}"


def _memory(phase: PhaseSummary) -> str:
    if phase.peak_bytes_max is None:
        return DASH
    most = f"{phase.peak_bytes_max / 2**20:,.0f}"
    if phase.peak_bytes_min is None or phase.peak_bytes_min == phase.peak_bytes_max:
        return most
    return f"{phase.peak_bytes_min / 2**20:,.0f} .. {most}"


def _share(value: Spread | None) -> str:
    return DASH if value is None else f"{100 * value.median:.1f}%"


def _rates(result: Result) -> str:
    rows, notes = [], []
    for name, rate in result.summary.rates.items():
        value = rate.value
        rows.append(
            (
                RATES[name],
                f"{value.median:,.1f}",
                f"{value.lower:,.1f} .. {value.upper:,.1f}",
                str(rate.devices),
            )
        )
        notes.append(f"  {RATES[name]}: {rate.tokens}; over {rate.seconds}.")
    return render(("rate", "median", "quartiles", "devices"), rows) + "\n" + "\n".join(map(_filled, notes))


def _remarks(result: Result) -> str:
    peak = result.peak.flops_per_s
    known = "not known" if peak is None else f"{peak / 1e12:.4g} TFLOP/s"
    lines = [
        "Phases add up to the step in every single step; medians of parts need not add up to the median of the whole.",
        "CPU s: processor time of all ranks and their child processes. "
        + (
            "Peak MiB: allocated on the GPU"
            if result.conditions.device == "cuda"
            else "Peak MiB: resident memory"
        )
        + ", least and most of the ranks.",
        "MFU: model FLOPs (grouped-query and causal attention, real lengths, no padding, nothing recomputed; "
        "sampling, and log-probs and update of our policy on a CPU, count a prompt once for all its responses, also "
        "where ranks or micro-batches each compute it) over seconds, devices and peak. HFU counts what the backward "
        "pass computes again too.",
        "Token rates count a prompt with each of its responses, also where it is computed once.",
        f"Peak of a device: {known} ({result.peak.source}).",
        *result.notes,
        *(f"ERROR in the measurement: {error}" for error in result.errors),
    ]
    return "\n".join(map(_filled, lines))


def _filled(text: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent="    ",
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
