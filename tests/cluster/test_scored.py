"""Groups of scored responses on their way into the records."""

from __future__ import annotations

from typing import Any

from nemo_thinkprune.cluster.scored import Groups


def rows(problem: str, *responses: str) -> list[dict[str, Any]]:
    return [
        {"problem_id": problem, "prompt": f"question of {problem}", "response": text} for text in responses
    ]


def trained(problem: str, *responses: str) -> list[list[str]]:
    return [[f"Think. question of {problem}", text, ""] for text in responses]


def told(taken: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    return [(row["problem_id"], row["sample"], row["response"]) for row in taken]


def test_what_a_step_trained_is_given_in_its_order_and_the_rest_waits() -> None:
    groups = Groups(2)
    groups.add([*rows("a", "x", "y"), *rows("b", "x"), *rows("a", "y", "z")], step=1)
    groups.add(rows("b", "x"), step=2)
    assert told(groups.take_trained([*trained("b", "x", "x"), *trained("a", "z", "y")])) == [
        ("b", 0, "x"), ("b", 1, "x"), ("a", 0, "z"), ("a", 1, "y"),
    ]  # fmt: skip
    assert groups.take_trained(trained("a", "z", "y")) == []  # of an earlier attempt: these rows are taken
    assert told(groups.take()) == [("a", 0, "x"), ("a", 1, "y")]


def test_rows_are_forgotten_by_the_step_they_came_in() -> None:
    groups = Groups(1)
    groups.add([*rows("a", "x"), *rows("b", "x")], step=1)
    groups.add(rows("a", "y"), step=2)
    groups.add(rows("c", "x"), step=3)
    groups.forget(before=1)
    assert told(groups.take_trained(trained("b", "x"))) == [("b", 0, "x")]
    groups.forget(before=2)
    assert told(groups.take_trained([*trained("a", "x"), *trained("a", "y")])) == [("a", 0, "y")]
    groups.add(rows("a", "z"), step=3)
    groups.forget(before=4)
    assert groups.take() == []
