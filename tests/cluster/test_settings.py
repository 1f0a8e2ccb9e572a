"""What NeMo-RL is handed: the recipe, and what only a run knows."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_thinkprune.cluster.data_plan import DataPlan
from nemo_thinkprune.cluster.settings import master_config
from nemo_thinkprune.data.ledger import Ledger
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.training.job import Job

PLAN = DataPlan(
    ledger=Ledger(40, 4, 0),
    steps=7,
    problem_ids=tuple(map(str, range(40))),
    validation_problems=6,
    validation_rows=96,
    longest_prompt=30,
    notes=(),
)


def job(tmp_path: Path, *overrides: str, **fields) -> Job:
    recipe = load_recipe("thinkprune", ["policy.model_name=Qwen/QwQ-32B", *overrides])
    given = {"limit": 3000, "model": "/head/snapshot", "engine": "nemo-rl", **fields}
    return Job(kind="train", run_dir=tmp_path / "run", recipe=recipe, **given)


def config(made: Job, plan: DataPlan = PLAN) -> dict:
    return master_config(made, plan, end_ids=(7, 9))


def test_the_limit_of_the_round_and_the_tokens_that_end_a_response(tmp_path):
    generation = config(job(tmp_path))["policy"]["generation"]
    assert (generation["max_new_tokens"], generation["stop_token_ids"]) == (3000, [7, 9])
    assert config(job(tmp_path))["data"]["train"]["length_hint"] == 3000


def test_a_hub_model_keeps_its_name_on_all_nodes(tmp_path):
    policy = config(job(tmp_path))["policy"]
    assert policy["model_name"] == policy["tokenizer"]["name"] == "Qwen/QwQ-32B"


def test_a_local_model_is_the_folder_that_the_job_found(tmp_path):
    policy = config(job(tmp_path, f"policy.model_name={tmp_path}"))["policy"]
    assert policy["model_name"] == policy["tokenizer"]["name"] == "/head/snapshot"


@pytest.mark.parametrize(
    ("rows", "batch", "expected"), [(96, 256, (96, 96)), (96, 64, (64, 128)), (96, 96, (96, 96))]
)
def test_every_row_is_validated(tmp_path, rows, batch, expected):
    grpo = config(job(tmp_path, f"grpo.val_batch_size={batch}"), replace(PLAN, validation_rows=rows))["grpo"]
    assert (grpo["val_batch_size"], grpo["max_val_samples"]) == expected
    assert grpo["max_val_samples"] // grpo["val_batch_size"] * grpo["val_batch_size"] >= rows


def test_without_validation_nothing_is_validated(tmp_path):
    without = job(tmp_path, "data.validation=null")
    made = config(without, replace(PLAN, validation_problems=0, validation_rows=0))
    grpo = made["grpo"]
    assert (grpo["val_period"], grpo["val_at_start"], grpo["val_at_end"]) == (0, False, False)
    assert made["data"]["validation"] is None


def test_steps_follow_the_ledger(tmp_path):
    made = config(job(tmp_path))
    assert (made["grpo"]["max_num_epochs"], made["grpo"]["max_num_steps"]) == (1, 7)
    assert made["data"]["shuffle"] is False
    assert made["data"]["train"]["prompts_per_step"] == 128


def test_setup_is_shown_the_magnitude_of_a_negative_kl_weight(tmp_path):
    signed = job(tmp_path, "loss_fn.reference_policy_kl_penalty=-0.001", "thinkprune.allow_negative_kl=true")
    assert config(signed)["loss_fn"]["reference_policy_kl_penalty"] == 0.001


def test_a_round_starts_from_the_weights_it_is_given(tmp_path):
    recipe_says = "policy.pretrained_checkpoint={path: weights/iter_0000001, format: megatron_lm}"
    assert "pretrained_checkpoint" not in config(job(tmp_path))["policy"]
    given = config(job(tmp_path, recipe_says))
    assert given["policy"]["pretrained_checkpoint"] == {
        "path": str(Path("weights/iter_0000001").absolute()),
        "format": "megatron_lm",
    }
    assert "pretrained_checkpoint" not in given["checkpointing"]
    handed = config(job(tmp_path, recipe_says, init_weights=tmp_path / "iter_0000000"))
    assert handed["policy"]["pretrained_checkpoint"] == {
        "path": str(tmp_path / "iter_0000000"),
        "format": "megatron_bridge",
    }


def test_paths_lie_in_the_run_folder_and_are_absolute(tmp_path):
    made = config(job(tmp_path))
    assert made["checkpointing"]["checkpoint_dir"] == str(tmp_path / "run" / "checkpoints")
    assert made["logger"]["log_dir"] == str(tmp_path / "run" / "logs")
    [train] = made["data"]["train"]["datasets"]
    assert Path(train["data_path"]).is_absolute()


def test_checkpoints_are_all_kept_and_saved_as_megatron_saves_them(tmp_path):
    section = config(job(tmp_path))["checkpointing"]
    assert (section["keep_top_k"], section["model_save_format"]) == (7, None)
    assert config(job(tmp_path, "checkpointing.keep_top_k=2"))["checkpointing"]["keep_top_k"] == 2
    by_length = config(job(tmp_path, "checkpointing.metric_name=val:mean_tokens"))["checkpointing"]
    assert by_length["metric_name"] == "val:avg_length"


def test_environments_score_as_the_recipe_says_and_validation_by_correctness_alone(tmp_path):
    shaped = "thinkprune.length_reward={name: l1_max, params: {target: 500}}"
    env = config(job(tmp_path, "thinkprune.truncation=score_cut_text", shaped))["env"]
    train, validation = env["thinkprune"], env["thinkprune_validation"]
    assert train["truncation"] == validation["truncation"] == "score_cut_text"
    assert train["length_reward"] == {"name": "l1_max", "params": {"target": 500}}
    assert "length_reward" not in validation


def test_on_a_cpu_all_ranks_are_one_node_that_generates_by_itself(tmp_path):
    spread = ("cluster.num_nodes=2", "cluster.gpus_per_node=2")
    made = config(job(tmp_path, *spread, on_cpu=True))
    assert (made["cluster"]["num_nodes"], made["cluster"]["gpus_per_node"]) == (1, 4)
    assert made["policy"]["generation"]["backend"] == "megatron"
    assert made["policy"]["model_name"] == "/head/snapshot"
    assert config(job(tmp_path, *spread))["cluster"]["num_nodes"] == 2
