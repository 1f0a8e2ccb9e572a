"""Ratios by hand, and what is not the same work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.made_benchmarks import CONDITIONS, MACHINE, MIB, MODEL, result, step, use

from nemo_thinkprune.bench.compare import comparison
from nemo_thinkprune.bench.phases import (
    LOGPROBS,
    OLD,
    OTHER,
    RECORDS,
    REFERENCE,
    ROLLOUT,
    ROLLOUT_AND_SCORING,
    SCORING,
    UPDATE,
)
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.reporting.table import DASH

STEPS = [step(n, scale=s) for n, s in ((2, 1.0), (3, 1.1), (4, 0.9), (5, 1.05), (6, 0.95))]


def line(text: str, name: str) -> list[str]:
    """The cells of the row that begins with `name`."""
    row = next(row for row in text.splitlines() if row.startswith(name))
    return [cell.strip() for cell in row.removeprefix(name).split("  ") if cell.strip()]


def test_the_same_measurement_does_not_differ() -> None:
    text = comparison(result(STEPS), result(STEPS))
    assert line(text, "step, s") == [
        "10.0",
        "10.0",
        "1.000",
        "1.000 .. 1.000",
        "no difference beyond the spread",
    ]
    assert "WARNING" not in text and "What differs" not in text and "step by step" in text


def test_twice_as_slow_is_twice_as_slow() -> None:
    slower = [step(n, scale=2 * s) for n, s in ((2, 1.0), (3, 1.1), (4, 0.9), (5, 1.05), (6, 0.95))]
    text = comparison(result(STEPS), result(slower))
    assert line(text, "update, s") == ["4.00", "8.00", "2.000", "2.000 .. 2.000", "differs"]
    assert line(text, "generated tokens/s/device")[:3] == ["20.0", "10.0", "0.500"]
    assert line(text, "rollout, CPU s")[:3] == ["8.00", "16.0", "2.000"]


def test_memory_and_mfu_are_ratios_without_interval() -> None:
    hungry = [replace(one, phases={**one.phases, UPDATE: use(4.0, peak=600 * MIB)}) for one in STEPS]
    hungry = [replace(one, seconds=sum(p.seconds for p in one.phases.values())) for one in hungry]
    text = comparison(result(STEPS), result(hungry, peak=2000.0))
    assert line(text, "peak memory of a rank, MiB") == ["300", "600", "2.000", DASH, "the most of all steps"]
    # 3200 FLOPs in 4 s on two devices of 1,000 and 2,000 FLOP/s
    assert line(text, "update, MFU") == ["40.0%", "20.0%", "0.500", DASH, "peaks 1e-09 and 2e-09 TFLOP/s"]
    assert line(text, "step, MFU")[:2] == ["25.0%", "12.5%"] and "scoring, MFU" not in text
    without = comparison(result(STEPS), result(STEPS, peak=None))
    assert "MFU" not in "".join(row for row in without.splitlines() if row.startswith(("step", "update")))


def test_how_many_rows_are_tested_is_said() -> None:
    text = comparison(result(STEPS), result(STEPS))
    tested = sum("no difference" in row for row in text.splitlines())
    assert f'{tested} rows, each tested at 95%: of equal things one in 20 "differs"' in text and tested > 10
    assert "each tested" not in comparison(result(STEPS[:2]), result(STEPS[:2]))


def test_other_lengths_are_not_paired() -> None:
    others = [replace(one, lengths="f" * 64) for one in STEPS]
    text = comparison(result(STEPS), result(others))
    assert "those of the medians" in text
    assert line(text, "step, s")[-1] == "no difference beyond the spread"


def test_too_few_steps_say_nothing() -> None:
    text = comparison(result(STEPS[:2]), result([step(2, scale=9.0), step(3, scale=9.9)]))
    assert line(text, "step, s")[-1] == "too few steps to say" and "fewer than 5 steps" in text


OTHER_WORK: dict[str, tuple[dict[str, Any], list[str]]] = {
    "limit": ({"limit": 60}, ["limit (response tokens): 50 and 60"]),
    "several": ({"prompts": 3, "samples": 4}, ["prompts: 2 and 3", "samples: 2 and 4"]),
    "model": ({"model": replace(MODEL, num_layers=3)}, ["model.num layers: 2 and 3"]),
    "lengths": ({"fixed_length": False}, ["fixed length: yes and no"]),
    "reference": ({"reference_logprobs": False}, ["reference logprobs: yes and no"]),
    "data": ({"problems": "q" * 64}, ["problems (SHA-256 of the ids of the first step)"]),
}


@pytest.mark.parametrize("name", OTHER_WORK)
def test_different_work_is_refused_field_by_field(name: str) -> None:
    work, said = OTHER_WORK[name]
    with pytest.raises(UserError, match="different work") as found:
        comparison(result(STEPS), result(STEPS, work=work))
    assert all(one in str(found.value) for one in said)
    assert str(found.value).count("\n  ") == len(said)


def test_other_token_counts_are_other_work() -> None:
    shorter = [replace(one, response_tokens=150, lengths="f" * 64) for one in STEPS]
    with pytest.raises(UserError, match=r"response tokens of a step \(mean\): 160\.0 and 150\.0"):
        comparison(result(STEPS), result(shorter))
    hardly = [replace(one, response_tokens=158, lengths="f" * 64) for one in STEPS]
    assert "step, s" in comparison(result(STEPS), result(hardly))


def test_conditions_are_named_and_machines_warned_of() -> None:
    other = result(
        STEPS,
        conditions={"tensor_parallel": 1, "precision": "bfloat16"},
        machine={"cores": 64, "packages": {**MACHINE["packages"], "torch": "2.9.0"}},
    )
    text = " ".join(comparison(result(STEPS), other).split())
    assert f"tensor parallel: {CONDITIONS['tensor_parallel']} and 1; precision: float32 and bfloat16." in text
    assert "WARNING, the machine or its software differs: cores: 2 and 64; torch 2.13.0 and 2.9.0." in text


def test_what_one_engine_does_not_tell_apart_is_compared_together() -> None:
    mine = {ROLLOUT: 4.0, SCORING: 1.0, OLD: 1.0, REFERENCE: 1.0, UPDATE: 2.0, OTHER: 1.0}
    ours = [step(n, phases={name: use(seconds) for name, seconds in mine.items()}) for n in (2, 3, 4)]
    theirs = [
        step(
            n,
            phases={
                name: use(seconds, peak=None)
                for name, seconds in {
                    ROLLOUT_AND_SCORING: 10.0,
                    LOGPROBS: 3.0,
                    UPDATE: 2.0,
                    OTHER: 1.0,
                }.items()
            },
            flops={ROLLOUT_AND_SCORING: 800, LOGPROBS: 2000, UPDATE: 3200},
            hardware_flops={ROLLOUT_AND_SCORING: 800, LOGPROBS: 2000, UPDATE: 4000},
            checkpoint=None,
        )
        for n in (2, 3, 4)
    ]
    text = comparison(result(ours), result(theirs))
    assert line(text, "rollout and scoring, s")[:3] == ["5.00", "10.0", "2.000"]
    assert line(text, "old and reference log-probs, s")[:3] == ["2.00", "3.00", "1.500"]
    assert "checkpoint, s" not in text and "\nscoring" not in text


def test_records_are_part_of_other_only_where_one_engine_has_none() -> None:
    apart = [step(n, phases={UPDATE: use(2.0), RECORDS: use(0.5), OTHER: use(1.0)}) for n in (2, 3, 4)]
    text = comparison(result(apart), result(apart))
    assert line(text, "records, s")[:2] == ["0.500", "0.500"] and line(text, "other, s")[:2] == [
        "1.00",
        "1.00",
    ]
    together = [step(n, phases={UPDATE: use(2.0), OTHER: use(3.0)}) for n in (2, 3, 4)]
    text = comparison(result(apart), result(together))
    assert line(text, "other, s")[:3] == ["1.50", "3.00", "2.000"] and "records" not in text


def test_an_error_of_a_measurement_is_told_again() -> None:
    assert "ERROR in the measurement of B: update: HFU" in comparison(
        result(STEPS), result(STEPS, peak=450.0)
    )
