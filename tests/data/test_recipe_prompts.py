"""Which problems of a recipe's data sets are used, with which prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.problem_files import LIMIT, make_recipe

from nemo_thinkprune.data.prompts import encode_prompt
from nemo_thinkprune.data.recipe_prompts import load_sets, problem_sets, training_prompts, validation_prompts
from nemo_thinkprune.data.tokenizer import load_tokenizer
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_recipe(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def tokenizer(recipe: Any) -> Any:
    return load_tokenizer(recipe.policy.model_name)


def questions(path: Path, *names: str) -> dict[str, Any]:
    path.write_text("".join(json.dumps({"id": n, "question": n, "answer": "1"}) + "\n" for n in names))
    return {"data_path": str(path)}


def test_sets_are_joined_in_order_each_with_its_own_number_of_rows(recipe: Any, tmp_path: Path) -> None:
    sets = [
        {**questions(tmp_path / "a.jsonl", "a1", "a2", "a3"), "max_samples": 2},
        questions(tmp_path / "b.jsonl", "b1", "b2"),
    ]
    changed = with_values(recipe, {"data.train": sets})
    assert [p.id for p in load_sets(problem_sets(changed, "train"))] == ["a1", "a2", "b1", "b2"]


def test_what_a_set_leaves_open_is_taken_from_the_default(recipe: Any, tmp_path: Path) -> None:
    sets = [
        {**questions(tmp_path / "a.jsonl", "a1", "a2", "a3"), "max_samples": 2},
        questions(tmp_path / "b.jsonl", "b1", "b2"),
    ]
    changed = with_values(recipe, {"data.train": sets, "data.default": {"max_samples": 1}})
    assert [p.id for p in load_sets(problem_sets(changed, "train"))] == ["a1", "a2", "b1"]


def test_an_id_in_two_sets_is_refused(recipe: Any, tmp_path: Path) -> None:
    sets = [questions(tmp_path / "a.jsonl", "x", "y"), questions(tmp_path / "b.jsonl", "y")]
    changed = with_values(recipe, {"data.train": sets})
    with pytest.raises(UserError, match="unique over all data sets; repeated: y"):
        load_sets(problem_sets(changed, "train"))


def test_prompts_are_those_of_the_one_function(recipe: Any, tokenizer: Any) -> None:
    for hint in (True, False):
        changed = with_values(recipe, {"thinkprune.length_hint": hint})
        found = training_prompts(changed, tokenizer, limit=LIMIT).prompts
        named = LIMIT if hint else None
        assert [p.token_ids for p in found] == [
            encode_prompt(tokenizer, p.problem, family="deepseek", length_hint=named) for p in found
        ]
        assert (f"{LIMIT} tokens" in tokenizer.decode(found[0].token_ids)) is hint


def test_validation_is_optional_and_has_at_most_so_many_problems(recipe: Any, tokenizer: Any) -> None:
    few = with_values(recipe, {"grpo.max_val_samples": 3})
    found = validation_prompts(few, tokenizer, limit=LIMIT).prompts
    assert [p.problem.id for p in found] == ["AIME22-0", "AIME22-1", "AIME23-2"]
    none = with_values(recipe, {"data.validation": None})
    assert validation_prompts(none, tokenizer, limit=LIMIT).prompts == []
