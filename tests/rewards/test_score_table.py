"""The table of answers, judged by the scorer that training uses."""

import pytest
from answer_cases import BUILT_TOO_LARGE, CORRECT, TOO_LARGE, read
from wrong_answer_cases import WRONG

from nemo_thinkprune.rewards.score import Scorer
from nemo_thinkprune.rewards.types import Item, Reason


@pytest.fixture(scope="module")
def scorer():
    with Scorer(workers=1, deadline_s=20.0, memory_mb=1024, truncation="zero") as scorer:
        yield scorer


def judged(scorer, answer, gold):
    (verdict,) = scorer.score([Item(rf"<think>so</think> It is \boxed{{{answer}}}.", gold, True)])
    assert verdict.reward == (1.0 if verdict.reason is Reason.CORRECT else 0.0)
    return verdict.reason


def test_the_table_is_large():
    pairs = read(CORRECT) + read(WRONG) + read(TOO_LARGE)
    assert len(set(pairs)) == len(pairs) >= 120


@pytest.mark.parametrize(("answer", "gold"), read(CORRECT))
def test_correct(scorer, answer, gold):
    assert judged(scorer, answer, gold) is Reason.CORRECT


@pytest.mark.parametrize(("answer", "gold"), read(WRONG))
def test_wrong(scorer, answer, gold):
    assert judged(scorer, answer, gold) is Reason.WRONG


@pytest.mark.parametrize(("answer", "gold"), read(TOO_LARGE))
def test_too_large(scorer, answer, gold):
    assert judged(scorer, answer, gold) is Reason.TOO_LARGE


@pytest.mark.parametrize("name", BUILT_TOO_LARGE)
def test_built_too_large(scorer, name):
    (verdict,) = scorer.score([Item(rf"\boxed{{{BUILT_TOO_LARGE[name]}}}", "25", True)])
    assert verdict.reason is Reason.TOO_LARGE
    assert len(verdict.answer) <= 200


@pytest.mark.parametrize("gold", sorted({gold for _, gold in read(CORRECT)}))
def test_every_gold_equals_itself(scorer, gold):
    # Respelt, so that it is not taken for the same text before the comparison begins.
    respelt = rf"\displaystyle {gold}\,"
    assert judged(scorer, respelt, gold) is Reason.CORRECT


LEGITIMATE = (
    r"\frac{100!}{2^{50}}",
    "2^{1009}",
    r"\frac{4 \cdot 999^{4}}{27}",
    "e^{x^2}",
    "2^{2^{n}}",
    "10^{100}",
)


@pytest.mark.parametrize("answer", LEGITIMATE)
def test_large_but_legitimate_answers_are_not_refused(scorer, answer):
    assert judged(scorer, answer, "1+" + answer) is Reason.WRONG
    assert judged(scorer, answer, answer.replace("{", "{ ")) is Reason.CORRECT
