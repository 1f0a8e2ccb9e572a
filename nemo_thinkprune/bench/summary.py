"""From the steps to their summary: medians with spread, rates with both of their denominators, MFU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from nemo_thinkprune.bench.phases import CHECKPOINT, LABELS, ROLLOUT, ROLLOUT_AND_SCORING, UPDATE, WAIT
from nemo_thinkprune.bench.result import (
    Conditions,
    MeasuredStep,
    Peak,
    PhaseSummary,
    PhaseUse,
    Rate,
    Result,
    Summary,
)
from nemo_thinkprune.bench.spread import Spread, spread
from nemo_thinkprune.bench.strict import encode
from nemo_thinkprune.costs.flops import mfu, mfu_error
from nemo_thinkprune.recipe.errors import UserError

STEP = "step"
_CLOSE = 1e-9

GENERATED = "generated_tokens_per_s_per_device"
TRAINED = "trained_tokens_per_s_per_device"
STEP_TOKENS = "tokens_per_sec_per_gpu"
RATES = {
    GENERATED: "generated tokens/s/device",
    TRAINED: "trained tokens/s/device",
    STEP_TOKENS: STEP_TOKENS,
}
"""Rates and their names for people; the last is NeMo-RL's metric performance/tokens_per_sec_per_gpu."""


def summarise(steps: Sequence[MeasuredStep], conditions: Conditions, peak: Peak) -> Summary:
    """The summary of the measured steps, of which there is one at least."""
    names = [name for name in LABELS if any(name in step.phases for step in steps)]
    whole = [use_of_step(step) for step in steps]
    checkpoints = [step.checkpoint for step in steps if step.checkpoint is not None]
    saving = PhaseSummary(**_common(checkpoints), share=None, mfu=None, hfu=None) if checkpoints else None
    return Summary(
        step=_phase(STEP, steps, whole, conditions, peak),
        phases={
            name: _phase(name, steps, [step.phases.get(name, NOTHING) for step in steps], conditions, peak)
            for name in names
        },
        checkpoint=saving,
        rates=dict(_rates(steps, conditions)),
    )


NOTHING = PhaseUse(seconds=0.0, cpu_seconds=None, peak_bytes_max=None, peak_bytes_min=None)


def use_of_step(step: MeasuredStep) -> PhaseUse:
    """All phases of a step together."""
    uses = list(step.phases.values())
    cpu = [use.cpu_seconds for use in uses]
    known = [value for value in cpu if value is not None]
    return PhaseUse(
        seconds=step.seconds,
        cpu_seconds=sum(known) if known and len(known) == len(cpu) else None,
        peak_bytes_max=max((u.peak_bytes_max for u in uses if u.peak_bytes_max is not None), default=None),
        peak_bytes_min=None,  # the rank that held least over the whole step does not follow from its phases
    )


def _phase(
    name: str, steps: Sequence[MeasuredStep], uses: Sequence[PhaseUse], conditions: Conditions, peak: Peak
) -> PhaseSummary:
    devices = devices_of(name, conditions)
    times = [use.seconds for use in uses]

    def utilisation(counts: Callable[[MeasuredStep], Any]) -> Spread | None:
        work = [_flops(counts(step), name) for step in steps]
        if peak.flops_per_s is None or not all(work) or not all(times):
            return None
        return spread(
            [
                mfu(flops, seconds=seconds, devices=devices, peak=peak.flops_per_s)
                for flops, seconds in zip(work, times, strict=True)
            ]
        )

    model = utilisation(lambda step: step.flops)
    hardware = utilisation(lambda step: step.hardware_flops)
    return PhaseSummary(
        **_common(uses),
        share=sum(times) / sum(step.seconds for step in steps),
        mfu=model,
        hfu=hardware if hardware != model else None,
    )


def _flops(counts: dict[str, int], name: str) -> int:
    return sum(counts.values()) if name == STEP else counts.get(name, 0)


def _common(uses: Sequence[PhaseUse]) -> dict[str, Any]:
    cpu = [use.cpu_seconds for use in uses if use.cpu_seconds is not None]
    highs = [use.peak_bytes_max for use in uses if use.peak_bytes_max is not None]
    lows = [use.peak_bytes_min for use in uses if use.peak_bytes_min is not None]
    return {
        "seconds": spread([use.seconds for use in uses]),
        "cpu_seconds": spread(cpu) if cpu else None,
        "peak_bytes_max": max(highs, default=None),
        "peak_bytes_min": max(lows, default=None),
    }


def devices_of(name: str, conditions: Conditions) -> int:
    """The devices that a phase holds."""
    if name == STEP:
        return conditions.devices
    rolling = name in (ROLLOUT, ROLLOUT_AND_SCORING, WAIT)
    return conditions.rollout_devices if rolling else conditions.training_devices


def _rates(steps: Sequence[MeasuredStep], conditions: Conditions) -> Iterator[tuple[str, Rate]]:
    """Tokens per second and device; generation has no rate of its own where it runs beside training."""
    everything = [step.prompt_tokens + step.response_tokens for step in steps]
    rolling = next((n for n in (ROLLOUT, ROLLOUT_AND_SCORING) if n in steps[0].phases), None)
    overlapped = any(WAIT in step.phases for step in steps)
    if rolling is not None and not overlapped:
        yield (
            GENERATED,
            _rate(
                [step.response_tokens for step in steps],
                [step.phases[rolling].seconds for step in steps],
                devices_of(rolling, conditions),
                tokens="response tokens that were sampled, end tokens included; no prompts, no padding",
                seconds=f"the phase '{LABELS[rolling]}' alone (reading the prompts is part of it)",
            ),
        )
    yield (
        TRAINED,
        _rate(
            everything,
            [step.phases[UPDATE].seconds for step in steps],
            devices_of(UPDATE, conditions),
            tokens="prompt and response tokens of every sequence of the update; no padding",
            seconds="the phase 'update' alone: forward, backward and optimizer",
        ),
    )
    yield (
        STEP_TOKENS,
        _rate(
            everything,
            [step.seconds for step in steps],
            conditions.devices,
            tokens="prompt and response tokens of every sequence, as NeMo-RL counts them",
            seconds="the whole step without checkpoint and validation",
        ),
    )


def _rate(counts: Sequence[int], times: Sequence[float], devices: int, *, tokens: str, seconds: str) -> Rate:
    values = [count / (time * devices) for count, time in zip(counts, times, strict=True)]
    return Rate(value=spread(values), tokens=tokens, seconds=seconds, devices=devices)


def measurement_errors(summary: Summary) -> list[str]:
    """Why numbers of the summary cannot be true: an MFU above 100%, in any step of any phase."""
    found = []
    for name, phase in {STEP: summary.step, **summary.phases}.items():
        for kind, value in (("MFU", phase.mfu), ("HFU", phase.hfu)):
            wrong = None if value is None else mfu_error(value.max)
            if wrong is not None:
                found.append(f"{LABELS.get(name, name)}: {wrong.replace('MFU', kind, 1)}")
    return found


def check_result(result: Result) -> None:
    """Refuse a benchmark that contradicts itself.

    Raises:
        UserError: Its phases do not add up to the step, or its summary does not follow from its steps.
    """
    if not result.steps:
        raise UserError("steps is empty")
    for step in result.steps:
        _check_step(step)
    try:
        expected = encode(_numbers(summarise(result.steps, result.conditions, result.peak)))
    except (ArithmeticError, ValueError) as error:
        raise UserError(f"nothing follows from its numbers ({error})") from None
    place = _difference(expected, encode(_numbers(result.summary)), "summary")
    if place is not None:
        raise UserError(f"{place} does not follow from the steps: the file was changed")
    if len(result.errors) != len(measurement_errors(result.summary)):
        raise UserError("errors do not follow from the summary: the file was changed")


def _numbers(summary: Summary) -> Summary:
    """The summary without words for people, which another version of this program may choose differently."""
    rates = {name: replace(rate, tokens="", seconds="") for name, rate in summary.rates.items()}
    return replace(summary, rates=rates)


def _check_step(step: MeasuredStep) -> None:
    for name in step.phases:
        if name not in LABELS or name == CHECKPOINT:
            raise UserError(f"steps: step {step.step} has a phase {name}, which there is not")
    if UPDATE not in step.phases:
        raise UserError(f"steps: step {step.step} has no phase {UPDATE}")
    if not step.seconds > 0 or any(use.seconds < 0 for use in step.phases.values()):
        raise UserError(f"steps: step {step.step} has a time that is not positive")
    total = math.fsum(use.seconds for use in step.phases.values())
    if not math.isclose(total, step.seconds, rel_tol=1e-6, abs_tol=1e-9):
        raise UserError(
            f"steps: the phases of step {step.step} add up to {total:.6g} s, and it took {step.seconds:.6g}"
        )


def _difference(expected: Any, found: Any, place: str) -> str | None:
    """The first place at which two JSON values differ by more than rounding."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        places = (_difference(expected[key], found[key], f"{place}.{key}") for key in expected)
        return next((one for one in places if one is not None), None)
    if isinstance(expected, float) and isinstance(found, float):
        return None if math.isclose(expected, found, rel_tol=_CLOSE, abs_tol=1e-15) else place
    return None if expected == found else place
