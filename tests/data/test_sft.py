"""Warm-up batches: the schedule, masks, resuming at any step, and what is refused."""

from collections import Counter
from itertools import islice

import pytest

from nemo_thinkprune.data.prompts import encode_prompt
from nemo_thinkprune.data.running_total import write_dataset
from nemo_thinkprune.data.sft import SftSchedule, Trace, load_traces, sft_batches
from nemo_thinkprune.data.tiny_model import build_tokenizer
from nemo_thinkprune.data.tokenizer import load_tokenizer
from nemo_thinkprune.recipe.errors import UserError

SMALL = SftSchedule(steps=10, short_fraction=0.4, short_batch_first=2, short_batch_last=5, batch=3)


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    sizes = {"train": 1, "selection": 1, "report": 1, "sft_short": 11, "sft_redundant": 7}
    return load_traces(write_dataset(tmp_path_factory.mktemp("task"), seed=5, **sizes)["sft"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return load_tokenizer(folder)


def test_the_documented_schedule():
    schedule = SftSchedule()
    assert schedule.short_steps == 245
    assert [schedule.traces_in(step) for step in (1, 123, 245, 246, 700, 900)] == [24, 34, 44, 16, 16, 16]
    assert [schedule.stage_of(step) for step in (245, 246, 900)] == ["short", "redundant", "redundant"]


def test_traces_taken_add_up_to_the_steps_before():
    for step in range(1, 15):
        stage = SMALL.stage_of(step)
        before = [SMALL.traces_in(s) for s in range(1, step) if SMALL.stage_of(s) == stage]
        assert SMALL.taken_before(step) == sum(before)


def test_batches_follow_the_schedule_and_use_every_trace_alike(traces, tokenizer):
    batches = list(islice(sft_batches(traces, tokenizer, schedule=SMALL, seed=0), 18))
    assert [batch.step for batch in batches] == list(range(1, 19))
    assert [len(batch.token_ids) for batch in batches] == [2, 3, 4, 5, *[3] * 14]
    stage = {trace.id: trace.stage for trace in traces}
    for batch in batches:
        assert {stage[name] for name in batch.trace_ids} == {SMALL.stage_of(batch.step)}
    # 14 short picks from 11 traces, 42 redundant ones from 7: whole permutations, one after the other.
    counts = Counter(name for batch in batches for name in batch.trace_ids)
    assert sorted(counts[t.id] for t in traces if t.stage == "short") == [1] * 8 + [2] * 3
    assert {counts[t.id] for t in traces if t.stage == "redundant"} == {6}


def test_a_batch_is_prompt_response_and_end_with_the_prompt_masked(traces, tokenizer):
    by_id = {trace.id: trace for trace in traces}
    batch = next(sft_batches(traces, tokenizer, schedule=SMALL, seed=0))
    for name, ids, mask in zip(batch.trace_ids, batch.token_ids, batch.loss_mask, strict=True):
        trace = by_id[name]
        prompt = encode_prompt(tokenizer, trace_problem(trace), family="plain", length_hint=None)
        assert ids[: len(prompt)] == prompt and len(ids) == len(mask)
        assert tokenizer.decode(ids[len(prompt) :]) == f"{trace.response} <|im_end|>"
        assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))


def trace_problem(trace):
    from nemo_thinkprune.data.problems import Problem

    return Problem(trace.id, trace.question, trace.answer, "any")


def test_a_warm_up_resumes_at_any_step(traces, tokenizer):
    whole = list(islice(sft_batches(traces, tokenizer, schedule=SMALL, seed=3), 16))
    for first in (1, 3, 5, 11, 16):
        resumed = sft_batches(traces, tokenizer, schedule=SMALL, seed=3, first_step=first)
        assert list(islice(resumed, 17 - first)) == whole[first - 1 :]
    other = next(sft_batches(traces, tokenizer, schedule=SMALL, seed=4))
    assert other.trace_ids != whole[0].trace_ids


def test_missing_stages_and_bad_rows_are_explained(traces, tokenizer, tmp_path):
    short = [trace for trace in traces if trace.stage == "short"]
    with pytest.raises(UserError, match="step 5 needs traces of stage 'redundant'"):
        list(islice(sft_batches(short, tokenizer, schedule=SMALL, seed=0), 5))
    path = tmp_path / "sft.jsonl"
    path.write_text('{"id": "a", "question": "q", "answer": "1", "response": "r", "stage": "other"}\n')
    with pytest.raises(UserError, match="row 1: a warm-up trace needs"):
        load_traces(path)
    with pytest.raises(UserError, match="short_fraction"):
        SftSchedule(short_fraction=1.5)
    with pytest.raises(ValueError, match="from 1"):
        SMALL.stage_of(0)


def test_a_tokenizer_without_end_token_is_refused():
    class Endless:
        eos_token_id = None

    trace = Trace("a", "q", "1", "r", "short")
    with pytest.raises(UserError, match="no end token"):
        next(sft_batches([trace], Endless(), schedule=SMALL, seed=0))
