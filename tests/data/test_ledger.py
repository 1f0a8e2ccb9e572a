"""The ledger plans each prompt once an epoch and catches every departure from the plan."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_thinkprune.data.ledger import Ledger, LedgerRow, ledger_row, read_ledger, verify_ledger
from nemo_thinkprune.recipe.errors import UserError

IDS = [f"p{i}" for i in range(11)]
LEDGER = Ledger(n_problems=11, prompts_per_step=4, seed=3)


def rows(count):
    return [ledger_row(LEDGER, step, IDS) for step in range(1, count + 1)]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_takes_each_problem_at_most_once_and_drops_only_the_remainder(n, per_step, seed):
    if n < per_step:
        with pytest.raises(UserError, match="num_prompts_per_step"):
            Ledger(n, per_step, seed)
        return
    ledger = Ledger(n, per_step, seed)
    for epoch in range(3):
        first = epoch * ledger.steps_per_epoch + 1
        taken = [i for step in range(first, first + ledger.steps_per_epoch) for i in ledger.take(step)]
        assert len(taken) == len(set(taken)) == n - n % per_step
        assert set(taken) <= set(range(n))
        assert ledger.epoch_of(first) == ledger.epoch_of(first + ledger.steps_per_epoch - 1) == epoch


def test_the_papers_epoch_has_nineteen_steps():
    assert Ledger(2470, 128, 42).steps_per_epoch == 19


def test_the_plan_depends_on_the_seed_and_changes_by_epoch():
    assert LEDGER.take(1) != Ledger(11, 4, 4).take(1)
    first, second = ([i for step in steps for i in LEDGER.take(step)] for steps in ((1, 2), (3, 4)))
    assert first != second
    assert LEDGER.take(5) == Ledger(11, 4, 3).take(5)


def test_verify_counts_what_was_trained():
    counts = verify_ledger(rows(5), LEDGER, IDS)
    assert set(counts) == set(IDS)
    assert sum(counts.values()) == 20
    assert counts == {**dict.fromkeys(IDS, 0), **Counter(IDS[i] for s in range(1, 6) for i in LEDGER.take(s))}


def test_a_recorded_ledger_is_read_back_and_verified(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows(3)))
    assert read_ledger(path) == rows(3)
    assert sum(verify_ledger([row.to_json() for row in rows(3)], LEDGER, IDS).values()) == 12


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r[:1] + r[2:], "skips to step 3 where step 2"),
        (lambda r: [*r[:2], r[1], *r[2:]], "repeats step 2 where step 3"),
        (
            lambda r: [r[0], replace(r[1], problem_ids=r[0].problem_ids), *r[2:]],
            "step 2 is not the plan: skipped",
        ),
        (lambda r: [replace(r[0], problem_ids=r[0].problem_ids[::-1]), *r[1:]], "another order"),
        (lambda r: [replace(r[0], problem_ids=r[0].problem_ids[1:]), *r[1:]], "skipped"),
        (lambda r: [replace(r[0], epoch=1), *r[1:]], "epoch 1, planned epoch 0"),
    ],
)
def test_verify_names_what_is_wrong(damage, message):
    with pytest.raises(UserError, match=message):
        verify_ledger(damage(rows(4)), LEDGER, IDS)


def test_changed_data_is_refused():
    with pytest.raises(UserError, match="data changed"):
        verify_ledger(rows(1), LEDGER, IDS[:-1])
    with pytest.raises(UserError, match="unique"):
        verify_ledger(rows(1), LEDGER, [*IDS[:-1], "p0"])


def test_steps_are_counted_from_one():
    with pytest.raises(ValueError, match="from 1"):
        LEDGER.take(0)


@pytest.mark.parametrize("text", ["{", '{"step": 1}', "[]", '{"step": "x", "epoch": 0, "problem_ids": []}'])
def test_a_damaged_record_is_refused_by_line(tmp_path, text):
    path = tmp_path / "ledger.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="line 1"):
        read_ledger(path)


def test_numbers_nesting_and_bytes_that_no_ledger_has(tmp_path):
    path = tmp_path / "ledger.jsonl"
    row = b'{"step": 1, "epoch": 0, "problem_ids": ["p"]}\n'
    for text, message in [
        (b'{"step": %s}' % (b"9" * 5000), "line 2 is not JSON"),
        (b"[" * 99_999, "line 2 is not JSON"),
        (b'{"step": Infinity, "epoch": 0, "problem_ids": []}', "line 2 is not a ledger row"),
        (b"\xff", "is not UTF-8 text"),
    ]:
        path.write_bytes(row + text)
        with pytest.raises(UserError, match=message):
            read_ledger(path)


def test_a_line_separator_inside_an_id_does_not_end_the_row(tmp_path):
    path = tmp_path / "ledger.jsonl"
    row = LedgerRow(1, 0, ("a\u2028b", "c\x85d"))
    path.write_text(json.dumps(row.to_json(), ensure_ascii=False) + "\n", "utf-8")
    assert read_ledger(path) == [row]


def test_a_missing_record_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_ledger(tmp_path / "none.jsonl")
