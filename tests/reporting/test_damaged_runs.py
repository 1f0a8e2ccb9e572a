"""A report comes out of any folder whose files were edited by hand, and says only what is still sound."""

import copy
import json
import random
import shutil

import fake_run
import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.reporting import run_files
from nemo_thinkprune.reporting.report import write_report, write_results

WRONG = ["text", None, True, [], {}, [1], {"a": {"b": 1}}, -1, 0, 1e308, float("nan"), float("inf"), 10**400]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fake_run.write_prune(tmp_path_factory.mktemp("runs") / "run", problems=6)


def documents(path):
    """The JSON documents of a file."""
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]


def places(value, path=()):
    """Every key of nested JSON, as a path."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


def damaged(value, path, wrong):
    changed = copy.deepcopy(value)
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = wrong
    return changed


FILES = [
    "eval/start.json",
    "eval/round_3_L64.json",
    "eval/start.jsonl",
    "round_1_L128/metrics.jsonl",
    "round_2_L96/decision.json",
    "control/metrics.jsonl",
    "warmup/metrics.jsonl",
    "environment.json",
]


@pytest.mark.parametrize("name", FILES)
def test_any_value_may_be_anything(finished, tmp_path, name):
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    if name == "environment.json":
        fake_run.write_json(root / name, {"python": "3.11", "packages": {"torch": "2"}})
    whole = documents(root / name)
    choose = random.Random(name)
    found = [(number, path) for number, row in enumerate(whole) for path in places(row)]
    for number, path in choose.sample(found, min(len(found), 12)):
        rows = list(whole)
        # Several wrong values at once, in rows of their own where there are many.
        for offset, wrong in enumerate(choose.sample(WRONG, 3 if len(whole) > 1 else 1)):
            at = (number + offset) % len(whole)
            if path in set(places(whole[at])):
                rows[at] = damaged(whole[at], path, wrong)
        if name.endswith(".jsonl"):
            fake_run.write_jsonl(root / name, rows)
        else:
            fake_run.write_json(root / name, rows[0])
        summary = write_results(root)
        assert summary["kind"] == "prune"
        json.dumps(summary, allow_nan=False)


def test_a_text_where_a_number_belongs_counts_as_missing(tmp_path):
    rows = list(fake_run.metric_rows(3, begin=90, end=60, cut=0.1))
    rows[0] |= {"reward_mean": "0.5", "step": 1}
    rows[1] |= {"step": "2"}
    rows[2] |= {"response_tokens_mean": float("nan"), "timing": {"tokens_per_s": "fast", "step_s": 2}}
    fake_run.write_jsonl(tmp_path / "metrics.jsonl", rows)
    summary = write_results(tmp_path)
    train = summary["train"]
    assert train["steps"] == 2
    assert train["first"]["reward_mean"] is None and train["first"]["accuracy"] == 0.95
    assert train["last"]["response_tokens_mean"] is None
    assert run_files.read_train(tmp_path).steps[1]["timing"] == {"step_s": 2}
    assert "mean reward – →" in (tmp_path / "report.html").read_text()


def test_a_validation_row_without_accuracy_or_length_is_left_out(tmp_path):
    rows = [
        fake_run.validation_row(0, accuracy="high", tokens=9.0),
        fake_run.validation_row(5, accuracy=0.5, tokens=None),
        fake_run.validation_row(10, accuracy=0.5, tokens=9.0),
    ]
    fake_run.write_jsonl(tmp_path / "metrics.jsonl", rows)
    assert [row["step"] for row in run_files.read_train(tmp_path).validation] == [10]


@pytest.mark.parametrize(
    "text", ["thinkprune: {limits: [a, 1.5, null, true, -3]}", "thinkprune: {limits: 7}", "a: 2001-99-99", "[" * 9999]
)  # fmt: skip
def test_a_damaged_recipe_leaves_the_rounds_that_are_there(finished, tmp_path, text):
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    (root / "config.yaml").write_text(text)
    assert run_files.read_run(root).limits == (128, 96, 64)
    assert [stage["limit"] for stage in write_results(root)["rounds"]] == [128, 96, 64]


@pytest.mark.parametrize(
    "text", ["[" * 99_999, '{"step": %s}' % ("9" * 5000), '{"step": 1, "kl": "\\ud800"}']
)
def test_lines_that_no_parser_takes_are_skipped(tmp_path, text):
    fake_run.write_train(tmp_path, steps=3)
    (tmp_path / "metrics.jsonl").open("a").write(text + "\n")
    (tmp_path / "decision.json").write_text(text)
    assert [row["step"] for row in run_files.read_train(tmp_path).steps][-1] == 3
    write_report(tmp_path)


def test_half_a_character_in_a_response_is_replaced(tmp_path):
    fake_run.write_prune(tmp_path, problems=4)
    for file in (tmp_path / "eval").glob("*.jsonl"):
        rows = [row | {"response": "\ud800 " + row["response"]} for row in documents(file)]
        fake_run.write_jsonl(file, rows)
    assert "? &lt;think&gt;" in write_report(tmp_path).read_text("utf-8")


def test_a_report_that_cannot_be_written(tmp_path):
    fake_run.write_train(tmp_path, steps=3)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.html: Is a directory"):
        write_report(tmp_path)
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(UserError, match="is not a folder"):
            write_report(tmp_path / name)
