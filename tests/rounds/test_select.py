import json

import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.rounds.select import Measured, select


def measured(step, accuracy, tokens):
    return Measured(step, accuracy, tokens, limit=240, share_cut=0.01, accuracy_at_limit=0.7)


BASE = measured(0, 0.50, 100.0)


def decide(*rows, baseline=BASE, drop=0.10, start="round_1_L128/w", missing=()):
    return select(
        rows,
        number=2,
        limit=96,
        baseline=baseline,
        baseline_from="round_1_L128",
        checkpoints={row.step: f"round_2_L96/step_{row.step}" for row in rows if row.step not in missing},
        start=start,
        max_relative_drop=drop,
    )


def test_the_shortest_of_those_that_kept_accuracy_wins():
    decision = decide(measured(10, 0.52, 80), measured(20, 0.46, 60), measured(30, 0.44, 40))
    assert (decision.selected_step, decision.weights) == (20, "round_2_L96/step_20")
    assert [c.qualifies for c in decision.candidates] == [True, True, False]
    assert decision.least_accuracy == pytest.approx(0.45)
    assert "2 of 3 checkpoints" in decision.reason and "step 20" in decision.reason


def test_a_fall_of_exactly_the_allowed_share_qualifies():
    assert decide(measured(10, 0.45, 50)).selected_step == 10
    for base, least in ((0.3, 0.27), (0.7, 0.63), (0.9, 0.81)):
        assert decide(measured(5, least, 50), baseline=measured(0, base, 100)).selected_step == 5
    assert decide(measured(10, 0.4499, 50)).kept_start


def test_the_fall_is_relative_not_in_points():
    decision = decide(measured(10, 0.41, 50))
    assert decision.candidates[0].relative_drop == pytest.approx(0.18)
    assert decision.kept_start


def test_of_equal_lengths_the_earliest_step_wins():
    assert decide(measured(30, 0.5, 60), measured(20, 0.5, 60), measured(10, 0.5, 61)).selected_step == 20


def test_when_nothing_qualifies_the_start_is_kept_and_said_with_numbers():
    decision = decide(measured(10, 0.30, 40), measured(20, 0.33, 50))
    assert decision.kept_start and decision.selected_step is None and decision.weights == "round_1_L128/w"
    assert "step 20 with 33.0%" in decision.reason and "start is kept" in decision.reason
    assert decide(measured(10, 0.3, 40), start=None).weights is None


def test_the_start_itself_and_steps_without_checkpoint_are_no_candidates():
    decision = decide(measured(0, 0.5, 10), measured(5, 0.5, 20), measured(10, 0.5, 60), missing=(5,))
    assert [c.step for c in decision.candidates] == [10]


def test_no_validated_checkpoint_is_an_error_that_says_what_to_set():
    with pytest.raises(UserError, match="val_period"):
        decide(measured(0, 0.5, 10), measured(5, 0.5, 20), missing=(5,))


def test_nothing_can_fall_from_a_baseline_of_zero():
    assert decide(measured(10, 0.0, 50), baseline=measured(0, 0.0, 100)).selected_step == 10


def test_a_gain_is_a_negative_drop():
    assert decide(measured(10, 0.6, 50)).candidates[0].relative_drop == pytest.approx(-0.2)


def test_the_record_holds_every_number_of_the_decision():
    record = json.loads(decide(measured(10, 0.52, 80), measured(20, 0.2, 60)).to_json())
    assert record["baseline"]["accuracy"] == 0.5 and record["baseline_from"] == "round_1_L128"
    assert record["max_relative_drop"] == 0.10 and record["selected_step"] == 10
    assert record["candidates"][1] == {
        "step": 20, "accuracy": 0.2, "mean_tokens": 60, "limit": 240, "share_cut": 0.01,
        "accuracy_at_limit": 0.7, "relative_drop": 0.6, "qualifies": False,
    }  # fmt: skip


def test_rows_of_metrics_are_read_nested_and_flat():
    values = {"accuracy": 0.5, "mean_tokens": 9.0, "limit": 240}
    expected = Measured(3, 0.5, 9.0, 240, None, None)
    assert Measured.from_row({"step": 3, "validation": values}) == expected
    assert Measured.from_row({"step": 3, **values}) == expected
