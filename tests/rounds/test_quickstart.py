import json
import shutil

import fake_engine
import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import dump_yaml, load_recipe, with_values
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


@pytest.fixture
def finished(tmp_path):
    """A quickstart that is through."""
    root = tmp_path / "qs"
    root.mkdir()
    quickstart(fake_engine.recipe(root), root, engine=Engine(run=fake_engine.run), say=lambda line: None)
    return root


def test_another_seed_is_refused_once_the_data_is_made(finished):
    stamp = (finished / "data" / "made.json").read_bytes()
    count = len(fake_engine.calls(finished))
    recipe = with_values(fake_engine.recipe(finished), {"grpo.seed": 7})
    with pytest.raises(UserError, match=r"grpo\.seed: was 42, is 7"):
        quickstart(recipe, finished, engine=Engine(run=fake_engine.run), say=lambda line: None)
    assert (finished / "data" / "made.json").read_bytes() == stamp
    assert len(fake_engine.calls(finished)) == count


def test_a_finished_warm_up_with_other_settings_is_refused_by_its_keys(finished):
    shutil.copy(finished / "config.yaml", finished / "warmup" / "config.yaml")  # as a real warm-up records
    placed = with_values(
        load_recipe(finished / "warmup" / "config.yaml"), {"policy.model_name": str(finished / "model")}
    )
    placed = with_values(placed, {"policy.tokenizer.name": str(finished / "model")})
    (finished / "warmup" / "config.yaml").write_text(dump_yaml(placed))
    again = with_values(fake_engine.recipe(finished), {"thinkprune.warmup.lr": 0.5})
    with pytest.raises(UserError, match=r"thinkprune\.warmup\.lr: was 0\.003, is 0\.5"):
        quickstart(again, finished, engine=Engine(run=fake_engine.run), say=lambda line: None)
    summary = quickstart(
        fake_engine.recipe(finished), finished, engine=Engine(run=fake_engine.run), say=lambda line: None
    )
    assert summary["status"] == "finished"


def test_a_layout_that_the_tiny_model_does_not_have_is_refused_before_the_warm_up(tmp_path):
    root = tmp_path / "qs"
    root.mkdir()
    values = {"policy.megatron_cfg.tensor_model_parallel_size": 3, "cluster.gpus_per_node": 3}
    recipe = with_values(fake_engine.recipe(root), values | {"policy.make_sequence_length_divisible_by": 3})
    with pytest.raises(UserError, match="tensor_model_parallel_size = 3 does not divide"):
        quickstart(recipe, root, engine=Engine(run=fake_engine.run), say=lambda line: None)
    assert fake_engine.calls(root) == []
