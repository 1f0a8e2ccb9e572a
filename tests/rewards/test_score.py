"""From a response to its verdict: truncation, reasons, batches, files."""

import json

import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.rewards.score import Scorer
from nemo_thinkprune.rewards.score_file import score_file
from nemo_thinkprune.rewards.types import Item, Reason, Verdict


def verdict(response, gold="25", finished=True, truncation="zero"):
    with Scorer(workers=1, deadline_s=20, memory_mb=512, truncation=truncation) as scorer:
        (only,) = scorer.score([Item(response, gold, finished)])
    return only


def test_reasons():
    assert verdict(r"<think>hm</think>\boxed{025}") == Verdict(1.0, Reason.CORRECT, "025")
    assert verdict(r"<think>hm</think>\boxed{24}") == Verdict(0.0, Reason.WRONG, "24")
    assert verdict(r"<think>\boxed{25}</think>It is 25.") == Verdict(0.0, Reason.NO_ANSWER, None)
    assert verdict(r"\boxed{9^{9^{9}}}") == Verdict(0.0, Reason.TOO_LARGE, "9^{9^{9}}")


CUT = {
    "box in the unfinished thought": (r"<think>It is \boxed{25}. Wait, let me", Reason.CORRECT),
    "box before the cut, after the thought": (r"</think>So \boxed{25} since", Reason.CORRECT),
    "wrong box before the cut": (r"<think>Perhaps \boxed{24}, but", Reason.WRONG),
    "box across the cut": (r"</think>So \boxed{25", Reason.NO_ANSWER),
    "box before and box across the cut": (r"So \boxed{25}. Again \boxed{2", Reason.NO_ANSWER),
    "thought's box, cut after the tag": (r"<think>\boxed{25}</think>So", Reason.NO_ANSWER),
    "no box": ("<think>It is 25, I think", Reason.NO_ANSWER),
}


@pytest.mark.parametrize("name", CUT)
def test_cut_text_scored_as_it_stands(name):
    response, reason = CUT[name]
    assert verdict(response, finished=False, truncation="score_cut_text").reason is reason
    # Under this rule a cut changes nothing about what a text is worth.
    assert verdict(response, finished=True, truncation="score_cut_text").reason is reason


@pytest.mark.parametrize("name", CUT)
def test_cut_text_earns_nothing(name):
    assert verdict(CUT[name][0], finished=False) == Verdict(0.0, Reason.TRUNCATED, None)


def test_a_batch_keeps_its_order():
    golds = ["25", r"\sqrt{2}", "x+1", "7"] * 5
    items = [Item(rf"\boxed{{{gold}}}", golds[(index * 3) % 20], True) for index, gold in enumerate(golds)]
    with Scorer(workers=2, deadline_s=20, memory_mb=512) as scorer:
        batch = scorer.score(items)
        assert batch == [scorer.score([item])[0] for item in items]
        assert scorer.score([]) == []
    assert [one.reward for one in batch] == [
        float(item.response == rf"\boxed{{{item.gold}}}") for item in items
    ]


ROWS = [
    {"response": r"</think>\boxed{25}", "gold": "25", "finished": True, "id": "a"},
    {"response": r"\boxed{½}", "gold": "0.5", "finished": True, "reward": 7},
    {"response": r"\boxed{24}", "gold": 25, "finished": True},
    {"response": r"\boxed{25}", "gold": "25", "finished": False},
]


def write(path, rows):
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.fixture
def scorer():
    with Scorer(workers=1, deadline_s=20, memory_mb=512) as scorer:
        yield scorer


def test_a_file_is_written_back_with_its_verdicts(tmp_path, scorer):
    source, seen = write(tmp_path / "rows.jsonl", [*ROWS, "\n"]), []
    summary = score_file(source, scorer=scorer, progress=lambda done, total: seen.append((done, total)))
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    assert [(row["reward"], row["reason"], row["answer"]) for row in rows] == [
        (1.0, "correct", "25"),
        (1.0, "correct", "½"),
        (0.0, "wrong", "24"),
        (0.0, "truncated", None),
    ]
    assert rows[0]["id"] == "a"
    assert rows[2]["gold"] == 25
    assert (summary.rows, summary.reward_mean, summary.path) == (4, 0.5, source)
    assert summary.reasons == {Reason.CORRECT: 2, Reason.WRONG: 1, Reason.TRUNCATED: 1}
    assert seen == [(4, 4)]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_scoring_into_another_file_leaves_the_first(tmp_path, scorer):
    source = write(tmp_path / "rows.jsonl", ROWS)
    before = source.read_bytes()
    score_file(source, tmp_path / "new" / "scored.jsonl", scorer=scorer)
    assert source.read_bytes() == before
    assert len((tmp_path / "new" / "scored.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_scoring_twice_changes_nothing(tmp_path, scorer):
    source = write(tmp_path / "rows.jsonl", ROWS)
    score_file(source, scorer=scorer)
    once = source.read_bytes()
    score_file(source, scorer=scorer)
    assert source.read_bytes() == once


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{broken\n", "line 2: not JSON"),
        ("[1]\n", "line 2: a JSON object"),
        ("[" * 100_000 + "\n", "line 2: not JSON"),
        ({"response": "x", "gold": "1"}, "line 2: finished missing"),
        ({}, "line 2: response, gold, finished missing"),
        ({"response": 5, "gold": "1", "finished": True}, "response must be text, not int"),
        ({"response": "x", "gold": None, "finished": True}, "gold must be text or an integer, not NoneType"),
        ({"response": "x", "gold": 2.5, "finished": True}, "gold must be"),
        ({"response": "x", "gold": "1", "finished": "yes"}, "finished must be true or false, not 'yes'"),
        ({"response": "x", "gold": "1", "finished": 1}, "finished must be"),
    ],
)
def test_a_bad_row_is_named_and_the_file_is_left_alone(tmp_path, scorer, row, says):
    source = write(
        tmp_path / "rows.jsonl", [ROWS[0], row if isinstance(row, str) else json.dumps(row) + "\n", ROWS[1]]
    )
    before = source.read_bytes()
    with pytest.raises(UserError, match=says):
        score_file(source, scorer=scorer)
    assert source.read_bytes() == before


def test_a_file_that_cannot_be_read(tmp_path, scorer):
    with pytest.raises(UserError, match="cannot be read"):
        score_file(tmp_path / "none.jsonl", scorer=scorer)
    (tmp_path / "binary").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not UTF-8"):
        score_file(tmp_path / "binary", scorer=scorer)


def test_a_lone_surrogate_does_not_stop_the_file(tmp_path, scorer):
    source = tmp_path / "rows.jsonl"
    source.write_text(r'{"response": "\ud800 \\boxed{25}", "gold": "25", "finished": true}')
    assert score_file(source, scorer=scorer).rows == 1


def test_scoring_needs_no_torch():
    import subprocess
    import sys

    program = "import sys, nemo_thinkprune.rewards.score_file, nemo_thinkprune.rewards.length_rewards; "
    program += "sys.exit(any(name in sys.modules for name in ('torch', 'sympy', 'math_verify', 'ray', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
