"""A result says what follows from its steps, survives its file, and is refused once the file was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.made_benchmarks import MIB, result, step, use

from nemo_thinkprune.bench.phases import OTHER, REFERENCE, ROLLOUT, SCORING, UPDATE
from nemo_thinkprune.bench.picture import picture
from nemo_thinkprune.bench.result import read_result, result_from
from nemo_thinkprune.bench.summary import GENERATED, STEP_TOKENS, TRAINED
from nemo_thinkprune.bench.table import result_table
from nemo_thinkprune.recipe.errors import UserError


def test_rates_and_utilisation_by_hand() -> None:
    summary = result([step(2), step(3, scale=2.0)]).summary
    # steps of 10 and 20 s: 4 and 8 s of rollout, 4 and 8 s of update, on two devices
    assert summary.step.seconds.median == 15.0 and summary.step.seconds.upper == 17.5
    rates = {name: (rate.value.max, rate.value.min) for name, rate in summary.rates.items()}
    assert rates == {
        GENERATED: (160 / (4 * 2), 160 / (8 * 2)),
        TRAINED: (200 / (4 * 2), 200 / (8 * 2)),
        STEP_TOKENS: (200 / (10 * 2), 200 / (20 * 2)),
    }
    phases = summary.phases
    assert list(phases) == [ROLLOUT, SCORING, REFERENCE, UPDATE, OTHER]
    # 800 FLOPs in 4 s on two devices of 1,000 FLOP/s
    assert phases[ROLLOUT].mfu is not None and phases[ROLLOUT].mfu.max == pytest.approx(0.1)
    assert phases[UPDATE].mfu is not None and phases[UPDATE].mfu.max == pytest.approx(3200 / 8000)
    assert phases[UPDATE].hfu is not None and phases[UPDATE].hfu.max == pytest.approx(4000 / 8000)
    assert (
        phases[ROLLOUT].hfu is None and phases[SCORING].mfu is None
    )  # nothing recomputed; no matrix product
    assert summary.step.mfu is not None and summary.step.mfu.max == pytest.approx(5000 / 20000)
    assert phases[UPDATE].share == pytest.approx(0.4)
    assert (phases[UPDATE].peak_bytes_max, phases[UPDATE].peak_bytes_min) == (300 * MIB, 150 * MIB)
    assert summary.step.peak_bytes_max == 300 * MIB
    assert summary.step.cpu_seconds is not None and summary.step.cpu_seconds.median == 30.0
    assert summary.checkpoint is not None and summary.checkpoint.seconds.median == 3.0


def test_more_than_the_peak_is_an_error_of_the_measurement() -> None:
    # on two devices, update: 3200 FLOPs in 4 s, 400 FLOP/s each; reference log-probs: 1000 in 1 s, 500 each
    found = result([step(2)], peak=450.0)
    assert [error.split(" is ")[0] for error in found.errors] == [
        "reference log-probs: MFU 111.1%",
        "update: HFU 111.1%",
    ]
    text = result_table(found)
    assert text.count("ERROR in the measurement") == 2 and "111.1%" in text
    assert "ERROR in the measurement" in picture(found)
    assert result_from(found.to_json()) == found


def test_without_a_peak_there_is_no_utilisation() -> None:
    found = result([step(2), step(3)], peak=None)
    assert found.summary.step.mfu is None and found.errors == ()
    assert "not known" in result_table(found)


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    made = result([step(2), step(3, scale=1.25), step(4, scale=0.5)])
    path = tmp_path / "bench.json"
    path.write_text(made.to_json())
    assert read_result(path) == made
    picture(made), result_table(made)


def test_other_words_for_people_are_no_change(tmp_path: Path) -> None:
    data = json.loads(result([step(2)], peak=450.0).to_json())
    data["summary"]["rates"][TRAINED] |= {"tokens": "as it was called", "seconds": "an earlier wording"}
    data["errors"] = [f"put otherwise: {error}" for error in data["errors"]]
    assert len(data["errors"]) == 2
    assert result_from(json.dumps(data)).summary.rates[TRAINED].tokens == "as it was called"


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *parents, last = path
        for name in parents:
            data = data[name]
        data[last] = value

    return change


def _rename(data: dict[str, Any]) -> None:
    data["work"]["limits"] = data["work"].pop("limit")


def _drop(data: dict[str, Any]) -> None:
    del data["machine"]


CHANGES = {
    "quicker step": (_set("steps", 0, "seconds", value=5.0), "add up"),
    "quicker phase and step": (_set("steps", 0, "phases", ROLLOUT, "seconds", value=1.0), "add up"),
    "better median": (_set("summary", "step", "seconds", "median", value=1.0), "summary.step.seconds.median"),
    "more memory": (_set("steps", 1, "phases", UPDATE, "peak_bytes_max", value=2**40), "peak_bytes_max does not"),
    "other peak": (_set("peak", "flops_per_s", value=1e6), "does not follow"),
    "no peak": (_set("peak", "flops_per_s", value=0.0), "nothing follows"),
    "no devices": (_set("conditions", "devices", value=0), "nothing follows"),
    "other rate": (_set("summary", "rates", TRAINED, "devices", value=1), "devices does not follow"),
    "hidden error": (_set("errors", value=["no"]), "errors do not follow"),
    "unknown key": (_rename, "did you mean limit?"),
    "missing key": (_drop, "machine is missing"),
    "text for a number": (_set("steps", 0, "step", value="2"), 'steps[0].step is "2", not a whole number'),
    "true for a number": (_set("work", "prompts", value=True), "not a whole number"),
    "fraction for a count": (_set("work", "prompts", value=2.5), "not a whole number"),
    "phase that there is not": (
        _set("steps", 0, "phases", "checkpoint", value=json.loads(json.dumps({
            "seconds": 0.0, "cpu_seconds": None, "peak_bytes_max": None, "peak_bytes_min": None}))),
        "which there is not",
    ),
    "no steps": (_set("steps", value=[]), "steps is empty"),
    "another schema": (_set("schema", value=2), "schema 2"),
    "a list": (_set("work", value=[]), "not a section"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_refused(name: str, tmp_path: Path) -> None:
    change, said = CHANGES[name]
    data = json.loads(result([step(2), step(3)]).to_json())
    change(data)
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError) as found:
        read_result(path)
    assert said in str(found.value) and str(path) in str(found.value)


BROKEN = {
    "cut short": lambda text: text[: len(text) // 2],
    "nothing": lambda text: "",
    "not a number": lambda text: text.replace('"seconds": 10.0', '"seconds": NaN'),
    "twice": lambda text: text.replace('"warmup": 1', '"warmup": 1, "warmup": 2'),
    "another file": lambda text: '{"loss": 1.0}',
    "a list": lambda text: "[1, 2]",
    "huge": lambda text: text.replace('"seconds": 10.0', '"seconds": 1e999'),
    "deep": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_or_foreign_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(BROKEN[name](result([step(2)]).to_json()))
    with pytest.raises(UserError, match="is not a benchmark"):
        read_result(path)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_result(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_result(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no text"):
        read_result(tmp_path / "bytes.json")


def test_phases_that_do_not_add_up_are_refused() -> None:
    made = result([step(2, phases={ROLLOUT: use(1.0), UPDATE: use(2.0)}, seconds=3.1)])
    with pytest.raises(UserError, match=r"add up to 3 s, and it took 3\.1"):
        result_from(made.to_json())
