"""What recipes need: the sizes of checkpoints are those that the recipes' own headers give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints_tools.hf_config import config_to_dict
from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.doctor.facts import File, Gpus, Host, Network, NodeFacts
from nemo_thinkprune.doctor.findings import Level
from nemo_thinkprune.doctor.judge_folders import judge_folders
from nemo_thinkprune.doctor.needs import disk_of, needs_of, parameter_count
from nemo_thinkprune.recipe.load import load_recipe

QWQ = ModelConfig(
    "Qwen2ForCausalLM", 5120, 64, 40, 8, 128, 27648, 152064, False, 1e6, None, 1e-5, True, False, 40960, 0.02,
    "bfloat16",
)  # fmt: skip


@pytest.fixture
def qwq(tmp_path: Path) -> str:
    folder = tmp_path / "QwQ-32B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_dict(QWQ)))
    return f"policy.model_name={folder}"


def test_parameters_of_a_model_here(qwq: str) -> None:
    count, source = parameter_count(qwq.partition("=")[2], {})
    assert (
        count == 32_763_876_352
    )  # of the released model.safetensors.index.json, 65,527,752,704 bytes of bfloat16
    assert source.endswith("QwQ-32B/config.json")


def test_the_sizes_in_the_recipes_headers(qwq: str) -> None:
    recipe = load_recipe("qwq-32b-rounds", [qwq, "grpo.max_num_steps=190"])
    disk = disk_of(recipe, rounds=True, environment={})
    assert disk.checkpoint == pytest.approx(459e9, rel=0.002)
    assert (disk.kept, disk.rounds) == (10, 3)
    assert disk.needed - disk.checkpoint == pytest.approx(13.8e12, rel=0.005)
    cluster = needs_of(recipe, engine="nemo-rl", on_cpu=False, rounds=True, environment={}).disk
    assert cluster.checkpoint == pytest.approx(393e9, rel=0.002)
    assert cluster.of_round * 3 == pytest.approx(11.8e12, rel=0.005)
    small = load_recipe("qwq-32b-rounds", [qwq, "checkpointing.save_optimizer=false"])
    assert disk_of(small, rounds=False, environment={}).checkpoint == pytest.approx(66e9, rel=0.01)


def test_what_keep_top_k_and_the_data_change(qwq: str, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"problem": "1+1", "answer": "2"}\n' * 640)
    words = [qwq, f"data.train=[{{data_path: {data}}}]", "grpo.max_num_epochs=10"]
    all_kept = disk_of(load_recipe("thinkprune", words), rounds=False, environment={})
    assert (
        all_kept.kept == 3
    )  # 640 problems of 128 a step, ten epochs: 50 steps, saved at 20, 40 and the last
    some = disk_of(
        load_recipe("thinkprune", [*words, "checkpointing.keep_top_k=1"]), rounds=False, environment={}
    )
    assert some.kept == 2  # the best and the newest


def test_a_size_that_nobody_knows_is_not_invented() -> None:
    recipe = load_recipe("thinkprune", ["policy.model_name=somebody/model"])
    disk = disk_of(recipe, rounds=True, environment={})
    assert (disk.checkpoint, disk.kept) == (0, 0) and "how large" in disk.source


def test_the_hubs_cache_what_is_built_in_and_then_the_name_tell_the_size(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--Qwen--QwQ-32B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config_to_dict(QWQ)))
    assert parameter_count("Qwen/QwQ-32B", {"HF_HOME": str(tmp_path)})[0] == 32_763_876_352
    count, source = parameter_count("Qwen/QwQ-32B", {"HF_HOME": "/nowhere"})
    assert count == 32_763_876_352 and "built in" in source
    assert parameter_count("a/QwQ-32B", {"HF_HOME": "/nowhere"}) == (32_000_000_000, "the name a/QwQ-32B")
    assert parameter_count("a/R1-Distill-Qwen-1.5B", {"HF_HOME": "/nowhere"})[0] == 1_500_000_000


@pytest.mark.parametrize(
    ("engine", "on_cpu", "gpus", "is_cluster"),
    [("nemo-rl", False, 8, True), ("nemo-rl", True, 0, False), ("local", False, None, False)],
)
def test_who_needs_gpus(engine: str, on_cpu: bool, gpus: int | None, is_cluster: bool) -> None:
    recipe = load_recipe("qwq-32b-4k-4n8g")
    needs = needs_of(recipe, engine=engine, on_cpu=on_cpu, rounds=False, environment={})
    assert (needs.gpus, needs.is_cluster, needs.nodes) == (gpus, is_cluster, 4)
    assert needs.hub == ("Qwen/QwQ-32B",)
    assert set(needs.paths) == {
        "data.train.0.data_path",
        "data.validation.0.data_path",
        "thinkprune.report_data",
    }
    assert all(path.startswith("/") for path in needs.paths.values())


def test_what_results_are_reported_on_is_read_in_rounds_alone() -> None:
    key = "thinkprune.report_data"
    for rounds, level in ((True, Level.PROBLEM), (False, Level.NOTE)):
        for path in ("somebody/problems", "/absent/report.jsonl"):
            recipe = load_recipe("qwq-32b-4k-4n8g", [f"{key}={path}"])
            needs = needs_of(recipe, engine="nemo-rl", on_cpu=False, rounds=rounds, environment={})
            assert ("somebody/problems" in needs.hub) == (rounds and path == "somebody/problems")
        file = File(key, needs.paths[key], problem="No such file or directory")
        node = NodeFacts("n1", Host(), Gpus(), [], [file], Network())
        (found,) = judge_folders([node], node, needs)
        assert (found.check, found.level, "prune" in found.found) == (key, level, not rounds)
