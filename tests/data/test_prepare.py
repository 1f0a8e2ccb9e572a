"""`thinkprune data prepare`: subset, counts, checksums, repeats and overlap."""

import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest

from nemo_thinkprune.data.prepare import prepare
from nemo_thinkprune.data.problems import EURUS_SUFFIX, load_problems
from nemo_thinkprune.recipe.errors import UserError


def eurus(question, gold, source):
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": question + EURUS_SUFFIX}],
        "ability": "math",
        "reward_model": {"ground_truth": gold, "style": "rule"},
    }


@pytest.fixture
def inputs(tmp_path):
    rows = [
        eurus("One plus one?", "2", "numina_amc_aime"),
        eurus("Two  plus two?", "4", "numina_amc_aime"),
        eurus("one plus ONE?", "2", "numina_amc_aime"),
        eurus("Elsewhere?", "0", "numina_olympiads"),
    ]
    train = tmp_path / "eurus.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), train)
    held_out = tmp_path / "aime.jsonl"
    questions = [("Two plus two?", "4", "AIME22"), ("New?", "025", "AIME23")]
    held_out.write_text(
        "".join(json.dumps({"problem": q, "answer": a, "data_source": s}) + "\n" for q, a, s in questions)
    )
    return str(train), str(held_out)


def run(inputs, out, family="qwen"):
    return {
        file.path.name: file
        for file in prepare(out=out, source=inputs[0], family=family, eval_files=[inputs[1]])
    }


def test_the_subset_is_taken_and_everything_reported(inputs, tmp_path):
    files = run(inputs, tmp_path / "out")
    assert list(files) == ["train.jsonl", "aime.jsonl", "prompt_qwen.txt", "manifest.json"]
    train = load_problems(files["train.jsonl"].path)
    assert [p.question for p in train] == ["One plus one?", "Two  plus two?", "one plus ONE?"]
    assert {p.level for p in train} == {6} and files["train.jsonl"].rows == 3
    assert files["train.jsonl"].notes[0].startswith("3 rows of numina_amc_aime out of 4")
    assert files["train.jsonl"].notes[1] == "1 rows repeat the question of an earlier row"
    assert files["aime.jsonl"].notes == (
        "AIME22: 1, AIME23: 1",
        "1 of 2 questions are also training questions",
    )
    for file in files.values():
        assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
    manifest = json.loads(files["manifest.json"].path.read_text())
    assert manifest["origins"] == {"train": inputs[0], "aime": inputs[1]}
    assert [entry["rows"] for entry in manifest["files"]] == [3, 2, 0]


def test_the_example_is_the_released_prompt(inputs, tmp_path):
    text = run(inputs, tmp_path / "out")["prompt_qwen.txt"].path.read_text()
    assert "should be within 4000 tokens." in text
    assert text.endswith(
        "One plus one? Please reason step by step, and put your final answer within \\boxed{}.\n"
    )
    plain = run(inputs, tmp_path / "plain", family="plain")["prompt_plain.txt"].path.read_text()
    assert plain == "# Prompt family plain\n\n## user\n\nOne plus one?\n"


def test_preparing_twice_gives_the_same_bytes(inputs, tmp_path):
    first, second = (run(inputs, tmp_path / name) for name in "ab")
    assert [f.sha256 for f in first.values()] == [f.sha256 for f in second.values()]


def test_data_without_the_subset_is_taken_whole_and_said_so(inputs, tmp_path):
    files = prepare(out=tmp_path / "out", source=inputs[1], family="deepseek", eval_files=[])
    assert files[0].rows == 2 and "it has none of numina_amc_aime" in files[0].notes[0]
    assert [p.level for p in load_problems(files[0].path)] == [None, None]


def test_nothing_is_written_when_an_input_is_wrong(inputs, tmp_path):
    out = tmp_path / "out"
    for family, sets, message in [
        ("gpt", [], "unknown thinkprune.prompt_family"),
        ("qwen", [inputs[1], inputs[1]], "aime.jsonl, which is taken"),
        ("qwen", [str(tmp_path / "none.jsonl")], "does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare(out=out, source=inputs[0], family=family, eval_files=sets)
    assert not out.exists()
