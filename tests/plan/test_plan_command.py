"""`thinkprune plan`: verdict, exit code, text and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_thinkprune.costs.gpus import GPUS
from nemo_thinkprune.costs.parts import PHASES
from nemo_thinkprune.plan.commands import plan
from nemo_thinkprune.plan.plan import memory_of_this_machine
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipes_folder

RECIPES = sorted(file.stem for file in recipes_folder().glob("*.yaml") if file.stem != "tiny-hf-cpu")


def run(recipe: str, *overrides: str, gpu: str = "h100-80g", as_json: bool = False) -> tuple[int, str]:
    said: list[str] = []
    code = plan(recipe, overrides, gpu=gpu, as_json=as_json, build=False, model=None, say=said.append)
    return code, "\n".join(said)


def values(recipe: str, *overrides: str, gpu: str = "h100-80g") -> dict[str, Any]:
    return json.loads(run(recipe, *overrides, gpu=gpu, as_json=True)[1])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("gpu", GPUS)
def test_every_recipe_for_every_gpu(recipe: str, gpu: str) -> None:
    code, text = run(recipe, gpu=gpu)
    assert code == 0 and text.splitlines()[-1].startswith("fits: ")


def test_text_has_phases_stages_parts_assumptions_disk_and_time() -> None:
    _, text = run("qwq-32b-4k-4n8g")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[6:13]] == list(PHASES)
    assert "stage 3" in lines[4]
    assert "78 sequences of 5056 tokens" in text
    assert "* assumed, vLLM asleep" in text and "* assumed, refit buffer" in text
    assert "the local engine is planned on CPUs alone" in lines[1]
    assert "checkpoints on disk: 393 GB each, every 20 steps" in text
    assert "step time (predicted" in text


def test_what_does_not_fit_ends_with_1_and_tells_by_how_much_where_and_what_to_do() -> None:
    code, text = run("qwq-32b-4k-4n8g", "policy.generation.vllm_cfg.gpu_memory_utilization=0.99")
    assert code == 1
    last = text.splitlines()[-6:]
    assert last[0].startswith("does not fit, by 3.2 GiB; worst: generate, stage 0")
    assert "needs 82.4 GiB of 79.2 GiB" in last[1]
    assert last[3] == "  policy.generation.vllm_cfg.gpu_memory_utilization=0.94"
    pasted = last[3].split()
    assert run("qwq-32b-4k-4n8g", *pasted)[0] == 0


def test_generation_on_gpus_of_its_own_is_no_stage_of_the_trainer() -> None:
    _, text = run("qwq-32b-4k-8n8g-async")
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("generate (rollout GPUs)"))
    assert len(row.split()) == 4  # one number: it has no stages
    assert "at the worst (generate (rollout GPUs): " in lines[-1]
    assert "* assumed, two broadcast buffers" in text
    cache = "policy.generation.vllm_kwargs={kv_cache_memory_bytes: 90000000000}"
    assert "generate (rollout GPUs): needs" in run("qwq-32b-4k-8n8g-async", cache)[1]
    found = values("qwq-32b-4k-8n8g-async")
    assert found["worst"]["place"] == "generate (rollout GPUs)"
    assert {one["gpus"] for one in found["phases"] if one["phase"] == "generate"} == {"rollout"}
    assert {one["gpus"] for one in found["phases"] if one["phase"] != "generate"} == {"training"}


def test_json_has_the_same_numbers_with_units_in_their_names() -> None:
    found = values("qwq-32b-4k-4n8g")
    assert found["fits"] and found["missing_bytes"] == 0 and found["advice"] is None
    assert found["layout"] == {"tp": 4, "pp": 4, "dp": 2, "cp": 1, "sequence_parallel": True}
    assert len(found["phases"]) == 4 * len(PHASES)
    for one in found["phases"]:
        assert one["bytes"] == sum(part["bytes"] for part in one["parts"]) <= found["capacity_bytes"]
    assert found["worst"]["bytes"] == max(one["bytes"] for one in found["phases"])
    assert found["generation"]["cache_bytes_per_token"] == 65_536
    assert found["step_time"]["step_seconds"] > 0
    assert found["host_worst_bytes"] == max(one["bytes"] for one in found["host"])
    short = values("qwq-32b-4k-4n8g", "policy.generation.vllm_cfg.gpu_memory_utilization=0.99")
    assert short["missing_bytes"] > 0 and short["advice"]["overrides"]


def test_the_local_engine_is_planned_in_host_memory() -> None:
    code, text = run("quickstart")
    assert code == 0
    assert "the local engine on CPUs: resident memory of one rank, 1 on this machine" in text
    assert "the tiny model that the quickstart makes" in text
    found = values("quickstart")
    assert found["device"] == "cpu" and found["generation"] is None and found["step_time"] is None
    assert {one["phase"] for one in found["phases"]} == set(PHASES) - {"refit"}


def test_a_model_that_nothing_here_knows_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pass --model FOLDER"):
        run("tiny-hf-cpu")
    with pytest.raises(UserError):
        plan("tiny-hf-cpu", [], gpu="h100-80g", as_json=False, build=False, model=tmp_path, say=print)


def test_a_split_that_does_not_divide_the_model_is_refused() -> None:
    with pytest.raises(UserError, match="does not divide"):
        run("qwq-32b-4k-4n8g", "policy.megatron_cfg.tensor_model_parallel_size=16", "cluster.num_nodes=8")


def test_stages_are_shortened_when_there_are_many() -> None:
    _, text = run(
        "qwq-32b-4k-4n8g",
        "policy.megatron_cfg.pipeline_model_parallel_size=16",
        "policy.megatron_cfg.tensor_model_parallel_size=2",
    )
    head = next(line for line in text.splitlines() if line.startswith("phase "))
    assert head.split() == ["phase", "stage", "0", "stage", "1", "stage", "14", "stage", "15", "worst"]


def test_what_no_formula_knows_is_told() -> None:
    words = ("policy.megatron_cfg.fp8_cfg.enabled=true", "policy.hf_config_overrides={rope_theta: 1}")
    expected = [
        "policy.hf_config_overrides = {'rope_theta': 1}",
        "policy.megatron_cfg.fp8_cfg.enabled = True",
    ]
    assert values("thinkprune", *words)["not_counted"] == expected
    told = [line for line in run("thinkprune", *words)[1].splitlines() if line.startswith("NOT counted")]
    assert [line.partition(": ")[2] for line in told] == expected
    assert values("thinkprune")["not_counted"] == []


def test_what_is_not_known_of_the_disk_is_null() -> None:
    unknown = values("thinkprune", "data.train={data_path: nothing.jsonl}")["disk"]
    assert unknown["checkpoint_bytes"] > 0 and unknown["kept"] is unknown["round_bytes"] is None
    known = values("thinkprune", "grpo.max_num_steps=190")["disk"]
    assert known["kept"] == 10 and known["round_bytes"] == 10 * known["checkpoint_bytes"]
    off = values("thinkprune", "checkpointing.enabled=false")["disk"]
    assert off == {"checkpoint_bytes": 0, "kept": 0, "round_bytes": 0}


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/jobs/7", {"jobs/7/memory.max": "max", "jobs/memory.max": "4096", "memory.max": "8192"}, 4096),
        ("4:memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": "2048"}, 2048),
        ("0::/", {}, None),
        ("0::/", {"memory.max": str(2**60)}, None),  # more than there is
    ],
)
def test_memory_is_that_of_the_job_or_container(
    line: str, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(line + "\n")
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert memory_of_this_machine(tmp_path) == (expected or memory_of_this_machine(tmp_path / "nothing"))
