"""`thinkprune data prepare`: subset, counts, checksums, repeats and overlap."""

import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest

from nemo_thinkprune.data.prepare import prepare
from nemo_thinkprune.data.problems import EURUS_SUFFIX, load_problems
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import load_recipe


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
    assert [entry.get("rows") for entry in manifest["files"]] == [3, 2, None]
    assert [file.rows for file in files.values()] == [3, 2, None, None]


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


@pytest.fixture
def aime(tmp_path):
    rows = [
        {"problem": f"{source} number {n}?", "data_source": source, "reward_model": {"ground_truth": f"0{n}"}}
        for source in ("AIME22", "AIME23", "AIME24")
        for n in range(3)
    ]
    rows[0]["problem"] = "One plus one?"
    path = tmp_path / "test_aime.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def test_aime_is_written_whole_and_its_test_year_once_more(inputs, aime, tmp_path):
    out = tmp_path / "out"
    files = prepare(out=out, source=inputs[0], family="qwen", eval_files=[], aime=aime)
    assert [file.path.name for file in files[:3]] == ["train.jsonl", "aime22-24.jsonl", "aime24.jsonl"]
    assert [file.rows for file in files[:3]] == [3, 9, 3]
    assert files[1].notes == (
        "AIME22: 3, AIME23: 3, AIME24: 3",
        "1 of 9 questions are also training questions",
    )
    selection = load_problems(out / "aime22-24.jsonl", sources=["AIME22", "AIME23"])
    test = load_problems(out / "aime24.jsonl")
    assert {p.source for p in selection} == {"AIME22", "AIME23"} and len(selection) == 6
    assert {p.source for p in test} == {"AIME24"} and len(test) == 3
    assert not {p.question for p in selection} & {p.question for p in test}


def test_these_are_the_files_that_the_paper_recipe_names(inputs, aime, tmp_path):
    recipe = load_recipe("thinkprune")
    made = prepare(out=tmp_path / "data", source=inputs[0], family="qwen", eval_files=[], aime=aime)
    named = [
        recipe.data.train[0].data_path,
        recipe.data.validation[0].data_path,
        recipe.thinkprune.report_data,
    ]
    assert set(named) <= {f"data/{file.path.name}" for file in made}
    assert recipe.data.validation[0].sources == ["AIME22", "AIME23"]


def test_a_file_of_the_users_own_stands_for_the_test_year(inputs, aime, tmp_path):
    own = tmp_path / "aime24.jsonl"
    own.write_text('{"question": "Mine?", "answer": "1"}\n')
    files = prepare(out=tmp_path / "out", source=inputs[0], family="qwen", eval_files=[str(own)], aime=aime)
    assert [(file.path.name, file.rows) for file in files[1:3]] == [
        ("aime22-24.jsonl", 9),
        ("aime24.jsonl", 1),
    ]


def test_other_data_is_not_taken_for_aime(inputs, tmp_path):
    with pytest.raises(UserError, match=r"expected the rows of AIME22, AIME23, AIME24.*'AIME22': 1.*--eval"):
        prepare(out=tmp_path / "out", source=inputs[0], family="qwen", eval_files=[], aime=inputs[1])
    assert not (tmp_path / "out").exists()


def test_a_folder_as_evaluation_data_needs_a_name(inputs, tmp_path, monkeypatch):
    folder = tmp_path / "sets.v1"
    folder.mkdir()
    (folder / "test.jsonl").write_text('{"question": "q?", "answer": "1"}\n')
    monkeypatch.chdir(folder)
    files = prepare(out=tmp_path / "out", source=inputs[0], family="qwen", eval_files=["."])
    assert files[1].path.name == "sets.v1.jsonl"
    for given in ("", "/"):
        with pytest.raises(UserError, match="has no name to write it under"):
            prepare(out=tmp_path / "out", source=inputs[0], family="qwen", eval_files=[given])


def test_half_a_character_is_refused_before_anything_is_written(tmp_path):
    source = tmp_path / "half.jsonl"
    source.write_text('{"question": "q \\ud800", "answer": "1"}\n')
    with pytest.raises(UserError, match="surrogates not allowed"):
        prepare(out=tmp_path / "out", source=str(source), family="qwen", eval_files=[])
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(inputs, tmp_path):
    file = tmp_path / "out"
    file.write_text("mine")
    for out, message in [(file, "is a file: --out names a folder"), (file / "x", "cannot write into")]:
        with pytest.raises(UserError, match=message):
            prepare(out=out, source=inputs[0], family="qwen", eval_files=[])
    assert file.read_text() == "mine"
