"""The environment as a plain object: what it judges, what it refuses, what it keeps."""

import asyncio
import threading

import pytest

from nemo_thinkprune.cluster.environment import ThinkPruneEnvironment, ThinkPruneValidationEnvironment
from nemo_thinkprune.cluster.responses import Response
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.rewards.types import Reason, Verdict

SETTINGS = {"workers": 1, "deadline_s": 20.0, "memory_mb": 1024, "truncation": "zero"}
KNOWN = {"problem_id": "p1", "question": "How many?", "ground_truth": "25"}
RIGHT = Response("so \\boxed{25}", 40, True)
WRONG = Response("so \\boxed{24}", 30, True)
CUT = Response("so \\boxed{25} but", 50, False)


def score(responses, environment_class=ThinkPruneEnvironment, **changes):
    async def run():
        environment = environment_class(SETTINGS | changes)
        rows = await environment.score(responses, [KNOWN] * len(responses))
        await environment.shutdown()
        return rows

    return asyncio.run(run())


def rewards(*args, **kwargs):
    return [row["reward"] for row in score(*args, **kwargs)]


def test_a_row_is_that_of_the_local_engine():
    assert score([CUT, RIGHT])[0] == {
        "problem_id": "p1",
        "prompt": "How many?",
        "response": "so \\boxed{25} but",
        "response_tokens": 50,
        "stop_reason": "limit",
        "reward": 0.0,
        "reason": "truncated",
        "answer": None,
        "gold": "25",
    }


def test_the_truncation_rule_decides_about_cut_text():
    assert rewards([RIGHT, WRONG, CUT]) == [1.0, 0.0, 0.0]
    assert rewards([RIGHT, WRONG, CUT], truncation="score_cut_text") == [1.0, 0.0, 1.0]


def test_plain_text_is_scored_only_where_the_cut_does_not_matter():
    with pytest.raises(UserError, match="thinkprune train RECIPE --engine nemo-rl"):
        score(["so \\boxed{25}"])
    [row] = score(["so \\boxed{25}"], truncation="score_cut_text")
    assert (row["reward"], row["response_tokens"], row["stop_reason"]) == (1.0, None, None)
    with pytest.raises(UserError, match="how long it is"):
        score(
            ["so \\boxed{25}"],
            truncation="score_cut_text",
            length_reward={"name": "l1_max", "params": {"target": 9}},
        )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"name": "none", "params": {}}, [1.0, 0.0, 0.0]),
        ({"name": "l1_exact", "params": {"target": 40, "alpha": 0.01}}, [1.0, -0.1, -0.1]),
        ({"name": "l1_max", "params": {"target": 40, "alpha": 0.01}}, [0.5, 0.0, 0.0]),
        ({"name": "dapo_overlong", "params": {"max_length": 50, "buffer": 20}}, [0.5, -1.0, -2.0]),
    ],
)
def test_length_rewards_shape_the_reward_and_not_the_reason(shape, expected):
    rows = score([RIGHT, WRONG, CUT], length_reward=shape)
    assert [row["reward"] for row in rows] == pytest.approx(expected)
    assert [row["reason"] for row in rows] == ["correct", "wrong", "truncated"]
    assert rewards([RIGHT, WRONG, CUT], ThinkPruneValidationEnvironment, length_reward=shape) == [
        1.0,
        0.0,
        0.0,
    ]


def test_a_length_reward_that_needs_the_group_is_refused():
    with pytest.raises(
        UserError, match=r"arora_zanette compares the responses to one prompt.*--engine local"
    ):
        ThinkPruneEnvironment(SETTINGS | {"length_reward": {"name": "arora_zanette", "params": {}}})


def test_settings_are_strict():
    with pytest.raises(UserError, match="unknown 'worker', missing 'workers'"):
        ThinkPruneEnvironment({"worker": 2} | {k: v for k, v in SETTINGS.items() if k != "workers"})
    with pytest.raises(UserError, match="truncation must be one of"):
        ThinkPruneEnvironment(SETTINGS | {"truncation": "none"})


class GatedScorer:
    """Stands for the Scorer; its first call lasts until the gate opens."""

    def __init__(self, error=None):
        self.gate, self.calls, self.threads, self.error = threading.Event(), [], set(), error

    def score(self, items):
        self.calls.append([item.response for item in items])
        self.threads.add(threading.get_ident())
        assert self.gate.wait(30)
        if self.error and len(self.calls) == 1:
            raise self.error
        return [Verdict(float(len(item.response)), Reason.CORRECT, item.response) for item in items]


async def overlapping(scorer):
    """Five calls, the first alone and four while it is judged; what each of them gave."""
    environment = ThinkPruneEnvironment(SETTINGS)
    environment._scorer = scorer

    def call(*texts):
        responses = [Response(text, 1, True) for text in texts]
        return asyncio.create_task(environment.score(responses, [KNOWN] * len(responses)))

    calls = [call("a")]
    while not scorer.calls:
        await asyncio.sleep(0.01)
    calls += [call("b", "bb"), call(), call("ccc"), call("dd")]
    while len(environment._waiting) < 3:
        await asyncio.sleep(0.01)
    scorer.gate.set()
    return await asyncio.gather(*calls, return_exceptions=True), environment


def test_overlapping_calls_are_judged_together_and_answered_apart():
    scorer = GatedScorer()
    results, environment = asyncio.run(overlapping(scorer))
    assert [[row["response"] for row in rows] for rows in results] == [
        ["a"],
        ["b", "bb"],
        [],
        ["ccc"],
        ["dd"],
    ]
    assert scorer.calls == [["a"], ["b", "bb", "ccc", "dd"]] and len(scorer.threads) == 1
    drained = asyncio.run(environment.drain())
    assert sorted(row["response"] for row in drained) == ["a", "b", "bb", "ccc", "dd"]
    assert asyncio.run(environment.drain()) == []


def test_an_error_reaches_those_who_wait_and_nobody_else():
    async def run():
        results, environment = await overlapping(GatedScorer(RuntimeError("no worker")))
        return results, await environment.score([Response("later", 1, True)], [KNOWN])

    results, later = asyncio.run(run())
    assert [isinstance(result, RuntimeError) for result in results] == [True, False, False, False, False]
    assert later[0]["response"] == "later"
