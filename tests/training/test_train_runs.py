"""Whole training runs of a few steps: layouts agree, several updates per rollout, other rewards, other limits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import assert_same, dcp_tensors, hf_tensors, reference_hf
from support.tiny_runs import WEIGHTS, records, train_job

from checkpoints_tools.bridge_files import (
    read_run_config,
    run_config_differences,
    states_the_model,
    train_state_pt,
)
from checkpoints_tools.convert import export_model, import_model
from checkpoints_tools.hf_config import read_hf_config
from checkpoints_tools.random_init import random_hf_init
from nemo_thinkprune.data.ledger import Ledger, read_ledger, verify_ledger
from nemo_thinkprune.data.problems import load_problems
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.training.models import starting_model
from nemo_thinkprune.training.supervisor import run_job

TP = "policy__megatron_cfg__tensor_model_parallel_size"
PP = "policy__megatron_cfg__pipeline_model_parallel_size"
LAYOUTS = {
    "tp2": {"cluster__gpus_per_node": 2, TP: 2},
    "pp2": {"cluster__gpus_per_node": 2, PP: 2},
    "dp2": {"cluster__gpus_per_node": 2},
}


def run(recipe: Any, run_dir: Path, **values: Any) -> list[dict[str, Any]]:
    """Train and give the rows of the steps."""
    run_job(train_job(recipe, run_dir, **values))
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "validation" not in row]


@pytest.fixture(scope="module")
def serial(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    run_dir = tmp_path_factory.mktemp("serial")
    return run_dir, run(tiny_run, run_dir)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_run(layout: str, serial: Any, tiny_run: Any, tmp_path: Path) -> None:
    serial_dir, serial_rows = serial
    rows = run(tiny_run, tmp_path, **LAYOUTS[layout])
    first = "rollouts/step_1.jsonl"  # later steps sample from weights that differ in their last digits
    assert (tmp_path / first).read_bytes() == (serial_dir / first).read_bytes()
    for key in ("reward_mean", "response_tokens_mean", "truncated_share", "mixed_group_share", "reasons"):
        assert rows[0][key] == serial_rows[0][key]
    for key in ("loss", "kl", "grad_norm", "entropy"):
        assert rows[0][key] == pytest.approx(serial_rows[0][key], rel=1e-4, abs=1e-6)


def test_an_imported_checkpoint_starts_the_same_run(serial: Any, tiny_run: Any, tmp_path: Path) -> None:
    """The weights come from the import; the model folder gives its tokenizer and other weights."""
    model = Path(tiny_run.policy.model_name)
    import_model(model, tmp_path / "imported")
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "model.safetensors").unlink()
    random_hf_init(read_hf_config(model), tmp_path / "random", seed=9)
    shutil.copy(tmp_path / "random/model.safetensors", other)
    recipe = with_values(
        tiny_run,
        {
            "policy.model_name": str(other),
            "policy.tokenizer.name": str(other),
            "policy.pretrained_checkpoint": {"path": str(tmp_path / "imported"), "format": "megatron_bridge"},
        },
    )
    source = starting_model(recipe)
    assert source.weights == tmp_path / "imported/iter_0000000"
    run_job(replace(train_job(recipe, tmp_path / "run"), init_weights=source.weights))
    first = "rollouts/step_1.jsonl"
    assert (tmp_path / "run" / first).read_bytes() == (serial[0] / first).read_bytes()


def test_a_folder_without_weights_is_no_start(tiny_run: Any, tmp_path: Path) -> None:
    values = {"policy.pretrained_checkpoint": {"path": str(tmp_path), "format": "megatron_bridge"}}
    with pytest.raises(UserError, match=r"pretrained_checkpoint\.path: .*holds no model"):
        starting_model(with_values(tiny_run, values))


def test_records_are_consistent(serial: Any, tiny_run: Any) -> None:
    run_dir, rows = serial
    for row in rows:
        samples = [
            json.loads(x) for x in (run_dir / f"rollouts/step_{row['step']}.jsonl").read_text().splitlines()
        ]
        assert len(samples) == 6 * 8
        assert row["reward_mean"] == sum(s["reward"] for s in samples) / 48
        assert row["trained_tokens"] == sum(s["response_tokens"] for s in samples)
        assert row["truncated_share"] == sum(s["stop_reason"] == "limit" for s in samples) / 48
        assert all(s["reward"] == 0 for s in samples if s["stop_reason"] == "limit")  # truncation: zero
        groups = [samples[i : i + 8] for i in range(0, 48, 8)]
        for group in groups:
            assert sum(s["advantage"] for s in group) == pytest.approx(0, abs=1e-9)
        assert row["sampler_gap"] < 1e-5
        assert row["updates"] == 1 and row["clip_share"] == 0
    problems = load_problems(tiny_run.data.train[0].data_path)
    ledger = Ledger(len(problems), 6, tiny_run.grpo.seed)
    counts = verify_ledger(read_ledger(run_dir / "ledger.jsonl"), ledger, [p.id for p in problems])
    assert sum(counts.values()) == 18 and set(counts.values()) <= {0, 1}


def test_a_step_exports_to_what_torch_reads(serial: Any, tmp_path: Path) -> None:
    step = min((serial[0] / "checkpoints").glob("step_*"))
    weights = step / WEIGHTS
    export_model(step, tmp_path / "hf")
    config = read_hf_config(tmp_path / "hf")
    assert_same(hf_tensors(tmp_path / "hf"), reference_hf(weights, config))
    assert any(key.startswith("optimizer.") for key in dcp_tensors(weights))


def test_a_step_is_a_start_for_megatron_bridge(serial: Any, tiny_run: Any) -> None:
    """What Bridge and NeMo-RL ask for beside the weights is there, true, and sealed."""
    step = min((serial[0] / "checkpoints").glob("step_*"))
    run_config = read_run_config(step / WEIGHTS)
    assert run_config is not None
    config = read_hf_config(Path(tiny_run.policy.model_name))
    assert states_the_model(run_config) and run_config_differences(run_config, config) == []
    assert run_config["model"]["params_dtype"]["_target_"] == "torch.float32"
    latest = WEIGHTS.parent / "latest_train_state.pt"
    assert (step / latest).read_bytes() == train_state_pt(0)  # of iter_0000000
    sealed = json.loads((step / "manifest.json").read_text())["files"]
    assert {str(latest), str(WEIGHTS / "run_config.yaml"), str(WEIGHTS / "train_state.pt")} <= sealed.keys()


def as_nemo_rl_leaves_it(step: Path) -> None:
    (step / "manifest.json").unlink()
    info = {"current_step": 2, "total_steps": 2, "consumed_samples": 12, "current_epoch": 0}
    (step / "training_info.json").write_text(json.dumps(info))


def test_a_checkpoint_of_nemo_rl_is_continued(serial: Any, tiny_run: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(serial[0], run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_3")
    as_nemo_rl_leaves_it(run_dir / "checkpoints" / "step_2")
    run(tiny_run, run_dir)
    assert records(run_dir) == records(serial[0])


def test_our_own_checkpoint_without_manifest_is_not_continued(
    serial: Any, tiny_run: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(serial[0], run_dir)
    for step in (2, 3):
        (run_dir / "checkpoints" / f"step_{step}" / "manifest.json").unlink()
    notes: list[str] = []
    run_job(train_job(tiny_run, run_dir), on_event=lambda event: notes.append(event.extra.get("note", "")))
    refused = [note for note in notes if "manifest.json is missing" in note]
    assert ["step_3" in refused[0], "step_2" in refused[1]] == [True, True] and len(refused) == 2
    assert records(run_dir) == records(serial[0])


def test_several_updates_per_rollout_move_the_ratio(tiny_run: Any, tmp_path: Path) -> None:
    rows = run(
        tiny_run,
        tmp_path,
        policy__train_global_batch_size=16,
        loss_fn__ratio_clip_min=1e-4,
        loss_fn__ratio_clip_max=1e-4,
    )
    assert all(row["updates"] == 3 for row in rows)
    assert all(row["clip_share"] > 0 for row in rows)  # the second update sees a policy that has moved


def test_a_length_reward_shapes_rewards_and_not_accuracy(tiny_run: Any, tmp_path: Path) -> None:
    shaped = {
        "thinkprune__length_reward__name": "arora_zanette",
        "thinkprune__length_reward__params": {"alpha": 0.5},
    }
    run(tiny_run, tmp_path, grpo__max_num_steps=1, **shaped)
    samples = [json.loads(x) for x in (tmp_path / "rollouts/step_1.jsonl").read_text().splitlines()]
    rewards = {s["reward"] for s in samples if s["reason"] == "correct"}
    assert rewards and all(0.5 <= reward < 1 for reward in rewards)  # 1 - 0.5 sigmoid(z)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert row["accuracy"] == sum(s["reason"] == "correct" for s in samples) / 48 > row["reward_mean"]


def test_without_a_kl_term_no_reference_is_kept(tiny_run: Any, tmp_path: Path) -> None:
    rows = run(tiny_run, tmp_path, grpo__max_num_steps=1, loss_fn__reference_policy_kl_penalty=0.0)
    assert rows[0]["kl"] == 0


def test_the_shipped_length_rewards_are_those_the_recipe_names() -> None:
    from typing import get_args

    from nemo_thinkprune.recipe.section_thinkprune import LengthReward
    from nemo_thinkprune.rewards.length_rewards import LENGTH_REWARDS

    assert set(get_args(LengthReward.model_fields["name"].annotation)) == set(LENGTH_REWARDS)
