"""Loading problems: the layouts of the public data sets, overrides, and what is refused."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from nemo_thinkprune.data.problems import DEEPSEEK_INSTRUCTION, EURUS_SUFFIX, QWEN_INSTRUCTION, load_problems
from nemo_thinkprune.data.problems import answer_text as answer
from nemo_thinkprune.data.problems import question_text as question
from nemo_thinkprune.recipe.errors import UserError


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def eurus_row(text, gold, source="numina_amc_aime"):
    return {
        "data_source": source,
        "prompt": [{"role": "system", "content": "plan first"}, {"role": "user", "content": text}],
        "ability": "math",
        "reward_model": {"ground_truth": gold, "style": "rule"},
        "extra_info": {"index": 3, "split": "train"},
    }


def test_eurus_before_and_after_the_released_processing(tmp_path):
    rows = [
        eurus_row("What is 1 + 1?" + EURUS_SUFFIX, "2"),
        eurus_row(f"What is 2 + 2? {DEEPSEEK_INSTRUCTION}", "4"),
        eurus_row(f"What is 3 + 3? {QWEN_INSTRUCTION}", "6"),
        eurus_row("Sort a list", "code", source="taco"),
    ]
    problems = load_problems(parquet(tmp_path / "train.parquet", rows), sources=["numina_amc_aime"])
    assert [p.question for p in problems] == ["What is 1 + 1?", "What is 2 + 2?", "What is 3 + 3?"]
    assert [p.answer for p in problems] == ["2", "4", "6"]
    assert [p.id for p in problems] == ["numina_amc_aime-0", "numina_amc_aime-1", "numina_amc_aime-2"]


def test_ids_do_not_depend_on_the_sources_chosen(tmp_path):
    rows = [eurus_row("a?", "1", "AIME22"), eurus_row("b?", "2", "AIME23"), eurus_row("c?", "3", "AIME23")]
    path = parquet(tmp_path / "aime.parquet", rows)
    everything = {p.question: p.id for p in load_problems(path)}
    assert all(everything[p.question] == p.id for p in load_problems(path, sources=["AIME23"]))


def test_the_released_test_file(tmp_path):
    row = {**eurus_row("Find P(0).", "033", "AIME23"), "problem": "Find P(0).", "level": 6}
    (problem,) = load_problems(parquet(tmp_path / "aime.parquet", [row]))
    assert (problem.question, problem.answer, problem.source, problem.level) == (
        "Find P(0).",
        "033",
        "AIME23",
        6,
    )


def test_evaluation_sets_in_their_usual_layouts(tmp_path):
    aime = {"id": 60, "problem": "p", "solution": "s", "answer": "025", "question": "p", "url": "u"}
    amc = {"id": 0, "problem": "p", "answer": 27.0, "question": "p"}
    math = {
        "problem": "p",
        "solution": "s",
        "answer": "\\frac{1}{2}",
        "level": 2,
        "unique_id": "test/x/1.json",
    }
    olympiad = {"id": 7, "question": "p", "solution": ["s"], "final_answer": ["$69$,$84$"], "context": None}
    loaded = [
        load_problems(jsonl(tmp_path / f"{name}.jsonl", [row]))[0]
        for name, row in [("aime24", aime), ("amc23", amc), ("math500", math), ("olympiad", olympiad)]
    ]
    assert [p.answer for p in loaded] == ["025", "27", "\\frac{1}{2}", "69,84"]
    assert [p.id for p in loaded] == ["aime24-60", "amc23-0", "test/x/1.json", "olympiad-7"]
    assert [p.source for p in loaded] == ["aime24", "amc23", "math500", "olympiad"]
    assert [p.level for p in loaded] == [None, None, 2, None]


def test_the_programs_own_rows_survive_unchanged(tmp_path):
    row = {"id": "x-1", "question": "q", "answer": "3", "source": "here", "level": None}
    (problem,) = load_problems(jsonl(tmp_path / "own.jsonl", [row]))
    assert {name: getattr(problem, name) for name in row} == row


def test_named_columns_with_dots(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"text": {"body": "q?"}, "label": {"value": 5}, "answer": "wrong"}])
    (problem,) = load_problems(path, question_key="text.body", answer_key="label.value")
    assert (problem.question, problem.answer) == ("q?", "5")


def test_json_lists_and_repeated_ids(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"id": 1, "question": q, "answer": "1"} for q in "ab"]))
    assert [p.id for p in load_problems(path)] == ["x-0", "x-1"]


def test_a_line_separator_inside_a_string_does_not_end_the_row(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "a\u2028b", "answer": "1"}\n', encoding="utf-8")
    assert load_problems(path)[0].question == "a\u2028b"


def test_the_split_of_a_folder_is_chosen_by_file_name(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        parquet(tmp_path / f"{name}.parquet", [{"question": name, "answer": "1"}])
    assert [p.question[:11] for p in load_problems(tmp_path)] == ["train-00000", "train-00001"]
    assert len(load_problems(tmp_path, split="test")) == 1
    with pytest.raises(UserError, match="no data files of split 'validation'"):
        load_problems(tmp_path, split="validation")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["1", "2"], "1, 2"),
        (7, "7"),
        (0.5, "0.5"),
        (-3.0, "-3"),
        ("$\\frac{1}{2}$", "\\frac{1}{2}"),
        ("\\$5", "\\$5"),
        (None, ""),
        (True, ""),
        ([], ""),
        (float("nan"), ""),
        (float("inf"), ""),
        ([1, float("-inf")], ""),
    ],
)
def test_answers_become_text(value, text):
    assert answer(value) == text


@pytest.mark.parametrize(
    "value",
    [None, 3, [], [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], [{"role": "system"}]],
)
def test_what_is_no_question(value):
    assert question(value) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"alpha": 1, "reward_model": {"beta": 2}}', r"no question column found.*alpha.*reward_model\.beta"),
        ('{"question": "q", "gamma": 1}', "no answer column found.*gamma.*answer_key"),
        (
            '{"question": "q", "answer": "1"}\n{"question": "", "answer": "1"}',
            "x-1: 'question' has no usable text",
        ),
        ('{"question": "q", "answer": "1"}\nnot json', "line 2 is not JSON"),
        ("[1, 2]", "must be an object"),
        ("", "has no rows"),
        ('{"question": "q", "answer": NaN}', "no answer column found|has no usable text"),
        ('{"question": "q", "answer": "1"}\n{"question": "q", "answer": -Infinity}', "x-1: 'answer' has no"),
        ('{"question": "q", "answer": %s}' % ("9" * 5000), "line 1 has a number of thousands of digits"),
        ('{"question": "q", "answer": ' + "[" * 99_999 + "]" * 99_999 + "}", "line 1 is nested too deeply"),
        ('{"question": "q \\ud800", "answer": "1"}', "row 'x-0': surrogates not allowed"),
        ('{"question": "q", "answer": "\\udfff"}', "surrogates not allowed"),
        ('{"question": "q", "answer": "1", "source": "\\ud800"}', "surrogates not allowed"),
        (b'{"question": "q\xff", "answer": "1"}', "not UTF-8 text"),
    ],
)
def test_unusable_files_are_explained(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        load_problems(path)


@pytest.mark.parametrize("name", ["a" * 300 + ".jsonl", "a" * 300, "a\0b.jsonl", "~no-such-user/x.jsonl"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(UserError, match="does not exist"):
        load_problems(name)


def test_a_level_of_many_digits_is_none(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"question": "q", "answer": "1", "level": "9" * 5000}])
    assert load_problems(path)[0].level is None


@pytest.mark.parametrize(
    ("unit", "gold"),
    [
        ("%", "4.2%"),
        ("\\%", "4.2%"),
        ("$\\%$", "4.2%"),
        (None, "4.2"),
        ("km", "4.2"),
        ("", "4.2"),
        (5, "4.2"),
    ],
)
def test_a_percent_sign_in_a_column_of_its_own_belongs_to_the_answer(tmp_path, unit, gold):
    rows = [{"id": 7, "question": "By how much?", "final_answer": ["4.2"], "unit": unit}]
    assert [problem.answer for problem in load_problems(jsonl(tmp_path / "x.jsonl", rows))] == [gold]


def test_a_percent_sign_is_not_joined_twice(tmp_path):
    rows = [{"question": "By how much?", "answer": "5\\%", "unit": "%"}]
    assert load_problems(jsonl(tmp_path / "x.jsonl", rows))[0].answer == "5\\%"


def test_unusable_names_are_explained(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"question": "q", "answer": "1", "source": "a"}])
    with pytest.raises(UserError, match=r"no rows of \['b'\].*'a': 1"):
        load_problems(path, sources=["b"])
    with pytest.raises(UserError, match="no question column 'z'"):
        load_problems(path, question_key="z")
    with pytest.raises(UserError, match="is one file"):
        load_problems(path, split="train")
    with pytest.raises(UserError, match="does not exist"):
        load_problems(tmp_path / "missing.jsonl")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a readable Parquet"):
        load_problems(tmp_path / "x.parquet")


def test_offline_says_what_to_do(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def refuse(*args, **kwargs):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(UserError, match=r"cannot get someone/something from the hub.*give their path"):
        load_problems("someone/something")


def test_a_hub_data_set_is_read_at_one_recorded_commit(monkeypatch, tmp_path):
    import types

    import huggingface_hub

    from nemo_thinkprune.data.tables import read_table

    asked = []
    files = {"data/train-00000-of-00001.parquet": "a?", "data/test-00000-of-00001.parquet": "b?"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        parquet(tmp_path / name, [{"question": text, "answer": "1"}])

    def info(self, repo, revision=None):
        asked.append((repo, revision))
        siblings = [types.SimpleNamespace(rfilename=name) for name in ["README.md", *files]]
        return types.SimpleNamespace(sha="c0ffee", siblings=siblings)

    def download(repo, name, *, repo_type, revision):
        asked.append((name, repo_type, revision))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    table = read_table("some/set@v2", split="test")
    assert (table.name, table.rows[0]["question"]) == ("some/set@c0ffee", "b?")
    assert asked == [("some/set", "v2"), ("data/test-00000-of-00001.parquet", "dataset", "c0ffee")]
