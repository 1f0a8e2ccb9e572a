"""Which scored responses a step of the asynchronous trainer trained."""

from __future__ import annotations

from nemo_thinkprune.cluster.scored import Groups


def scored(problem, *texts):
    return [{"problem_id": problem, "prompt": f"question {problem} ?", "response": text} for text in texts]


def contents(problem, *texts):
    return [(f"user: question {problem} ? assistant:", text, "") for text in texts]


def taken(groups, *trained):
    rows = groups.take_trained([messages for group in trained for messages in group])
    return [(row["problem_id"], row["sample"], row["response"]) for row in rows]


def test_groups_come_in_the_order_of_training_and_the_others_wait():
    groups = Groups(2)
    groups.add([*scored("a", "x", "y"), *scored("b", "x", "y"), *scored("c", "z", "z")], step=1)
    first = taken(groups, contents("c", "z", "z"), contents("a", "y", "x"))
    assert first == [("c", 0, "z"), ("c", 1, "z"), ("a", 0, "y"), ("a", 1, "x")]
    assert taken(groups, contents("b", "x", "y")) == [("b", 0, "x"), ("b", 1, "y")]
    assert groups.take() == []


def test_two_groups_of_a_problem_are_told_apart_by_their_responses():
    groups = Groups(2)
    groups.add(scored("a", "old", "older", "new", "newer"), step=1)
    assert taken(groups, contents("a", "new", "newer")) == [("a", 0, "new"), ("a", 1, "newer")]
    assert [row["response"] for row in groups.take()] == ["old", "older"]


def test_a_group_of_an_earlier_attempt_has_no_rows():
    groups = Groups(2)
    groups.add(scored("a", "x", "y"), step=1)
    assert taken(groups, contents("b", "x", "y"), contents("a", "x", "unknown")) == []
    assert len(groups.take()) == 2
