"""Files that a recipe names, asked for where a run starts and not when a recipe is checked."""

import pytest
from support.nemo_rl_recipes import recipe

from nemo_thinkprune.recipe.check_files import check_files, check_report_data
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import load_recipe


def missing(*overrides, on_cpu=False):
    with pytest.raises(UserError) as caught:
        check_files(recipe(*overrides), on_cpu=on_cpu)
    return str(caught.value)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "v").mkdir()
    return tmp_path


def test_data_that_is_there_or_may_be_on_the_hub(data):
    check_files(recipe())
    check_files(recipe("data.train={data_path: PRIME-RL/Eurus-2-RL-Data}"))
    (data / "a.jsonl").write_text("{}")
    check_files(recipe(f"data.train={{data_path: {data}/a.jsonl}}"))


@pytest.mark.parametrize("name", ["data/train.jsonl", "train.parquet", "/nowhere/data", "./x", "a/b/c", "x"])
def test_data_that_is_not_there(data, name):
    message = missing(f"data.train={{data_path: {name}}}")
    assert f"data.train.0.data_path = {name!r}: nothing at /" in message
    assert "`thinkprune data prepare`" in message


def test_a_check_of_a_recipe_does_not_ask_for_its_data(data):
    check_recipe(load_recipe("qwq-32b-rounds"), engine="nemo-rl")
    with pytest.raises(UserError, match=r"(?s)data\.train\.0\.data_path.*data\.validation\.0\.data_path"):
        check_files(load_recipe("qwq-32b-rounds"))


def test_problems_to_report_on(data):
    check_report_data(recipe())
    (data / "r.jsonl").write_text("{}")
    for name in ("r.jsonl", "p", "HuggingFaceH4/aime_2024"):
        check_report_data(recipe(f"thinkprune.report_data={name}"))
    with pytest.raises(UserError) as caught:
        check_report_data(recipe("thinkprune.report_data=data/gone.jsonl"))
    assert str(caught.value) == (
        f"thinkprune.report_data = 'data/gone.jsonl': nothing at {data}/data/gone.jsonl; make it with `thinkprune data "
        "prepare` or correct the path, or set null for rounds without a result"
    )


def weights(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("")
    return folder


def start(path, kind="megatron_bridge"):
    return f"policy.pretrained_checkpoint={{path: {path}, format: {kind}}}"


def test_a_checkpoint_to_start_from(data):
    iteration = weights(data / "w" / "iter_0000000", "metadata.json", "run_config.yaml")
    for path in (iteration, iteration.parent, "w"):
        check_files(recipe(start(path)))
    assert "there is no folder" in missing(start("gone"))
    assert "holds no torch_dist weights" in missing(start(weights(data / "empty")))


def test_a_checkpoint_that_only_the_cpu_worker_loads(data):
    bare = weights(data / "bare" / "iter_0000000", "metadata.json", ".metadata")
    assert "has no run_config.yaml, without which NeMo-RL's GPU workers do not load it" in missing(
        start(bare)
    )
    check_files(recipe(start(bare)), on_cpu=True)
    check_files(recipe(start(bare, "megatron_lm")))


def test_the_iteration_that_the_tracker_names(data):
    root = weights(data / "root", "latest_checkpointed_iteration.txt")
    weights(root / "iter_0000007", "metadata.json", "run_config.yaml")
    weights(root / "iter_0000009", "metadata.json")
    (root / "latest_checkpointed_iteration.txt").write_text("7\n")
    check_files(recipe(start(root)))
    (root / "latest_checkpointed_iteration.txt").write_text("9")
    assert "iter_0000009 has no run_config.yaml" in missing(start(root))
