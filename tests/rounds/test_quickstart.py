import json

import fake_engine
import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.rounds.plan import Engine
from nemo_thinkprune.rounds.quickstart import quickstart


def test_the_quickstart_makes_warms_up_prunes_and_tells(tmp_path):
    root = tmp_path / "qs"
    root.mkdir()
    said = []
    recipe = fake_engine.recipe(root)
    summary = quickstart(recipe, root, engine=Engine(run=fake_engine.run), say=said.append)
    text = "\n".join(said)
    assert [f"Stage {n} of 4" in text for n in (1, 2, 3, 4)] == [True] * 4
    assert "accuracy 96.0%, 98.0 tokens" in text and "after warm-up" in text
    assert summary["status"] == "finished" and summary["baseline"]["label"] == "after warm-up"
    calls = fake_engine.calls(root)
    assert calls[0]["kind"] == "warmup" and calls[0]["model"] == str(root / "model")
    assert {c["model"] for c in calls[1:]} == {str(root / "warmup" / "model")}
    made = json.loads((root / "data" / "made.json").read_text())
    assert made["seed"] == recipe.grpo.seed and set(made["rows"]) == {"train", "selection", "report", "sft"}


def test_a_second_call_repeats_no_stage(tmp_path):
    root = tmp_path / "qs"
    root.mkdir()
    first = quickstart(
        fake_engine.recipe(root), root, engine=Engine(run=fake_engine.run), say=lambda line: None
    )
    stamp = (root / "data" / "train.jsonl").stat().st_mtime_ns
    count = len(fake_engine.calls(root))
    again = quickstart(
        fake_engine.recipe(root), root, engine=Engine(run=fake_engine.run), say=lambda line: None
    )
    assert again == first and len(fake_engine.calls(root)) == count
    assert (root / "data" / "train.jsonl").stat().st_mtime_ns == stamp


def test_a_recipe_without_warm_up_is_refused(tmp_path):
    recipe = with_values(fake_engine.recipe(tmp_path), {"thinkprune.warmup": None})
    with pytest.raises(UserError, match=r"thinkprune\.warmup"):
        quickstart(recipe, tmp_path, engine=Engine(run=fake_engine.run), say=print)
