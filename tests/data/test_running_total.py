"""The tiny task: its rules, the teacher's statistics, the splits, and the model folder."""

import json
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from nemo_thinkprune.data.problems import load_problems
from nemo_thinkprune.data.running_total import (
    RunningTotal,
    make_problem,
    shortest_trace,
    split_of,
    teacher_trace,
    write_dataset,
)
from nemo_thinkprune.data.sft import load_traces
from nemo_thinkprune.data.streams import CounterStream
from nemo_thinkprune.data.tiny_model import model_config, vocabulary, write_model_folder
from nemo_thinkprune.data.tokenizer import load_tokenizer

EXAMPLE = RunningTotal(13, (3, -4, -4))
STEP = re.compile(r"([a-f]) ([+-][1-5]) : (\d+) ([+-][1-5]) = (\d+) ;")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    sizes = {"train": 300, "selection": 40, "report": 60, "sft_short": 200, "sft_redundant": 200}
    return write_dataset(folder, seed=1, **sizes)


def tokens(response):
    """Words and the end token."""
    return len(response.split()) + 1


def follow(question, response):
    """Run a response as a machine would: the answer in its box, after every step was checked against the question."""
    words = question.split(" ; ")
    value, operands = int(words[0].removeprefix("start ")), [word.split()[1] for word in words[1:-1]]
    thought, _, answer = response.removeprefix("<think> ").partition("</think> ")
    position, last = 0, None
    for chunk in thought.split(" ;")[:-1]:
        text = chunk.strip() + " ;"
        if text.startswith("wait , check "):
            assert text.removeprefix("wait , check ") == last
            continue
        letter, operand, before, again, after = STEP.fullmatch(text).groups()
        assert (letter, operand, again) == ("abcdef"[position], operands[position], operands[position])
        assert int(before) == value and int(after) == value + int(operand)
        value, position, last = int(after), position + 1, text
    assert position == len(operands)
    assert answer == f"\\boxed{{ {value} }}"
    return value


def test_the_documented_example():
    assert EXAMPLE.question == "start 13 ; a +3 ; b -4 ; c -4 ; result ?"
    assert EXAMPLE.answer == "8"
    assert shortest_trace(EXAMPLE) == (
        "<think> a +3 : 13 +3 = 16 ; b -4 : 16 -4 = 12 ; c -4 : 12 -4 = 8 ; </think> \\boxed{ 8 }"
    )
    assert tokens(shortest_trace(EXAMPLE)) == 8 * 3 + 6


def test_instances_obey_the_rules():
    stream = CounterStream("rules")
    instances = [make_problem(stream) for _ in range(2000)]
    for instance in instances:
        assert 0 <= instance.start <= 19 and all(0 <= total <= 19 for total in instance.totals)
        assert all(1 <= abs(operand) <= 5 for operand in instance.operands)
        assert tokens(shortest_trace(instance)) == 8 * len(instance.operands) + 6
    lengths = Counter(len(instance.operands) for instance in instances)
    assert set(lengths) == {3, 4, 5, 6} and min(lengths.values()) > 400


def test_traces_are_right_and_checks_repeat_their_step():
    stream = CounterStream("traces")
    for _ in range(300):
        instance = make_problem(stream)
        trace = teacher_trace(instance, stream)
        assert follow(instance.question, trace) == int(instance.answer)
        assert (tokens(trace) - tokens(shortest_trace(instance))) % 11 == 0


def test_the_teachers_lengths_are_those_of_the_measured_task():
    stream = CounterStream("statistics")
    lengths = sorted(tokens(teacher_trace(make_problem(stream), stream)) for _ in range(8000))
    # Documented: mean 103, sd 48, percentiles 41 and 197, nothing above 230; standard error of the mean 0.5.
    assert statistics.mean(lengths) == pytest.approx(102, abs=2.5)
    assert statistics.pstdev(lengths) == pytest.approx(48, abs=1.5)
    assert lengths[400] == pytest.approx(41, abs=3) and lengths[7600] == pytest.approx(197, abs=5)
    assert lengths[-1] <= 230


def test_splits_depend_on_the_text_alone_and_hold_out_a_tenth():
    stream = CounterStream("splits")
    questions = {make_problem(stream).question for _ in range(6000)}
    shares = Counter(split_of(question) for question in questions)
    total = len(questions)
    assert shares["train"] / total == pytest.approx(0.9, abs=0.015)
    assert shares["selection"] / total == pytest.approx(0.05, abs=0.01)
    assert shares["report"] / total == pytest.approx(0.05, abs=0.01)


def test_files_are_disjoint_distinct_and_complete(files):
    problems = {name: load_problems(files[name]) for name in ("train", "selection", "report")}
    questions = {name: {p.question for p in loaded} for name, loaded in problems.items()}
    assert {name: len(found) for name, found in questions.items()} == {
        "train": 300,
        "selection": 40,
        "report": 60,
    }
    for name, found in questions.items():
        assert {split_of(question) for question in found} == {name}
    traces = load_traces(files["sft"])
    assert Counter(t.stage for t in traces) == {"short": 200, "redundant": 200}
    assert {split_of(t.question) for t in traces} == {"train"}
    assert all(follow(t.question, t.response) == int(t.answer) for t in traces)
    assert len({p.id for loaded in problems.values() for p in loaded}) == 400


def test_files_depend_on_the_seed_and_their_own_count(files, tmp_path):
    sizes = {"train": 30, "selection": 4, "report": 6, "sft_short": 20, "sft_redundant": 20}
    again = write_dataset(tmp_path / "a", seed=1, **sizes)
    assert files["train"].read_text().startswith(again["train"].read_text())
    other = write_dataset(tmp_path / "b", seed=2, **sizes)
    assert other["train"].read_text() != again["train"].read_text()
    assert other["sft"].read_text() != again["sft"].read_text()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model_folder(tmp_path_factory.mktemp("model") / "tiny")


def test_every_word_is_one_known_token(files, model):
    tokenizer = load_tokenizer(model)
    assert len(tokenizer) == len(vocabulary()) == 62
    for trace in load_traces(files["sft"])[:50]:
        text = f"{trace.question} {trace.response}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == text.split()
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_other_loaders_read_the_folder_alike(model):
    from transformers import AutoConfig, AutoTokenizer

    text = "<|im_start|> user\nstart 13 ; a +3 ; result ? <|im_end|>"
    ours, theirs = load_tokenizer(model), AutoTokenizer.from_pretrained(model)
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    config = AutoConfig.from_pretrained(model)
    assert (config.model_type, config.vocab_size, config.initializer_range) == ("qwen2", 62, 0.09)
    assert config.eos_token_id == ours.eos_token_id


def test_the_model_has_304000_parameters():
    c = model_config()
    hidden, ffn, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    kv = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * kv + hidden + 2 * kv
    total = c["vocab_size"] * hidden + layers * (attention + 3 * hidden * ffn + 2 * hidden) + hidden
    assert total == 304_000 and c["tie_word_embeddings"]


def test_the_folder_holds_text_only(model):
    names = {path.name for path in Path(model).iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith(".tmp") or name.startswith(".")]
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == 2
