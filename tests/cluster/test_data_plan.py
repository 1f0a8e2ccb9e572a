"""What a NeMo-RL run is told about its data, against what the local engine does; needs no NeMo-RL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.problem_files import LIMIT, local_plan, make_recipe

from nemo_thinkprune.cluster.data_plan import absolute_data, data_plan, training_entry, validation_entry
from nemo_thinkprune.cluster.rows import LedgerOrder, RepeatedOrder, Row, Rows
from nemo_thinkprune.data.ledger import Ledger, ledger_row, verify_ledger
from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_recipe(tmp_path_factory.mktemp("plan"))


@pytest.mark.parametrize("max_steps", [2, 8, 100])
def test_the_plan_is_that_of_the_local_engine(recipe: Any, max_steps: int) -> None:
    recipe = with_values(recipe, {"grpo.max_num_steps": max_steps})
    plan = data_plan(recipe, tokenizer=recipe.policy.model_name, limit=LIMIT)
    local, notes = local_plan(recipe)
    assert (plan.ledger, plan.steps) == (local.ledger, local.last_step)
    assert list(plan.problem_ids) == [prompt.problem.id for prompt in local.train]
    assert plan.validation_problems == len(local.validation) == 4
    assert plan.longest_prompt == max(len(p.token_ids) for p in local.train + local.validation)
    assert list(plan.notes) == notes
    assert (plan.n_problems, plan.prompts_per_step, plan.steps) == (11, 3, min(max_steps, 9))
    assert plan.validation_rows == 16


def test_what_is_left_out_is_said(recipe: Any) -> None:
    (note,) = data_plan(recipe, tokenizer=recipe.policy.model_name, limit=LIMIT).notes
    assert note == (
        "data.train: 1 of 12 prompts are longer than data.max_input_seq_length = 600 and are left out"
    )


def test_rows_follow_the_ledger_over_epochs() -> None:
    ledger = Ledger(11, 3, seed=5)
    order = LedgerOrder(ledger, ledger.last_step(epochs=3, max_steps=8))
    rows = [order[i] for i in range(len(order))]
    assert [rows[3 * i : 3 * i + 3] for i in range(8)] == [ledger.take(step) for step in range(1, 9)]
    ids = [f"p{i}" for i in range(11)]
    recorded = [
        {
            **ledger_row(ledger, step, ids).to_json(),
            "problem_ids": [ids[r] for r in rows[3 * step - 3 : 3 * step]],
        }
        for step in range(1, 9)
    ]
    assert sum(verify_ledger(recorded, ledger, ids).values()) == 24


def test_rows_end_where_they_end() -> None:
    problems = [Row(Problem(f"p{i}", "q", "a", "s")) for i in range(3)]
    rows = Rows("task", problems, RepeatedOrder(3, 2), "plain", None)
    assert [row["row"].problem.id for row in rows] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    for wrong in (-1, 6):
        with pytest.raises(IndexError):
            rows[wrong]


def test_entries_say_it_in_plain_values(recipe: Any) -> None:
    name = recipe.policy.model_name
    train = training_entry(recipe, tokenizer=name, limit=77, env_name="thinkprune")
    validation = validation_entry(recipe, tokenizer=name, limit=77, env_name="other")
    assert validation is not None
    for entry in (train, validation):
        assert yaml.safe_load(yaml.safe_dump(entry)) == entry
        assert (entry["length_hint"], entry["prompt_family"]) == (77, "deepseek")
        assert (entry["tokenizer"], entry["max_input_seq_length"]) == (name, 600)
    assert train["datasets"] == [
        {"data_path": recipe.data.train[0].data_path, "sources": ["numina_amc_aime"]},
    ]
    assert {key: train[key] for key in ("env_name", "prompts_per_step", "epochs", "max_steps", "ledger_seed")} == {
        "env_name": "thinkprune", "prompts_per_step": 3, "epochs": 3, "max_steps": 8, "ledger_seed": 5,
    }  # fmt: skip
    assert (validation["env_name"], validation["repeats"]) == ("other", 4)
    assert validation["datasets"][0]["sources"] == ["AIME22", "AIME23"]


def test_entries_without_hint_validation_or_values_of_their_own(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = with_values(
        recipe,
        {"thinkprune.length_hint": False, "data.validation": None, "data.default": {"max_samples": 7}},
    )
    train = training_entry(changed, tokenizer="org/model", limit=77, env_name="e")
    assert (train["length_hint"], train["tokenizer"]) == (None, "org/model")
    monkeypatch.chdir(Path(recipe.policy.model_name).parent)
    named = training_entry(changed, tokenizer="model", limit=77, env_name="e")["tokenizer"]
    assert named == recipe.policy.model_name
    assert train["datasets"][0]["max_samples"] == 7
    assert validation_entry(changed, tokenizer="org/model", limit=77, env_name="e") is None


def test_a_set_without_a_file_is_refused(recipe: Any) -> None:
    changed = with_values(recipe, {"data.train": [{"dataset_name": "DeepScaler"}]})
    with pytest.raises(UserError, match=r"data\.train\.0: give data_path"):
        training_entry(changed, tokenizer="m", limit=9, env_name="e")


def test_too_few_problems_for_a_step(recipe: Any) -> None:
    changed = with_values(recipe, {"grpo.num_prompts_per_step": 12})
    with pytest.raises(UserError, match="11 training problems cannot fill a step of 12"):
        data_plan(changed, tokenizer=recipe.policy.model_name, limit=LIMIT)


def test_paths_become_absolute_and_hub_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "math").mkdir(parents=True)
    for path in ("data/math", "data/absent.jsonl", "./absent/folder", "../x", "absent", "a/b/c"):
        assert absolute_data(path) == str((tmp_path / path).resolve())
    for hub_id in ("PRIME-RL/Eurus-2-RL-Data", "owner/name@main"):
        assert absolute_data(hub_id) == hub_id
    assert absolute_data("~/x") == str(Path.home() / "x")


def test_planning_needs_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, nemo_thinkprune.cluster.data_plan, nemo_thinkprune.cluster.rows;"
        "print([m for m in ('torch', 'megatron', 'ray', 'nemo_rl') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
