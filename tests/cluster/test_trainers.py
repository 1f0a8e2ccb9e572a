"""NeMo-RL's real setup and trainers under our driver, with stand-ins for vLLM and the policy alone."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from support.nemo_rl import require_nemo_rl
from support.ray_here import ray_here

from nemo_thinkprune.cluster.names import ENVIRONMENT, VALIDATION_ENVIRONMENT
from nemo_thinkprune.cluster.responses import ResponseTokenizer
from nemo_thinkprune.recipe.load import load_recipe, recipes_folder
from nemo_thinkprune.rounds.nemo_rl import check_for_nemo_rl
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.worker import RankContext

STEPS, PROMPTS, PROBLEMS, HELD_OUT = 3, 2, 6, 2
MODES = {
    "synchronous": ("r1-distill-qwen-1.5b-4k", ["cluster.gpus_per_node=1"]),
    "synchronous on the asynchronous engine": (
        "r1-distill-qwen-1.5b-4k",
        ["cluster.gpus_per_node=1", "policy.generation.vllm_cfg.async_engine=true"],
    ),
    "asynchronous": (
        "qwq-32b-4k-8n8g-async",
        [
            "cluster.num_nodes=1",
            "cluster.gpus_per_node=2",
            "policy.generation.colocated.resources={num_nodes: 1, gpus_per_node: 1}",
            "policy.megatron_cfg.tensor_model_parallel_size=1",
            "policy.megatron_cfg.pipeline_model_parallel_size=1",
            "policy.megatron_cfg.sequence_parallel=false",
            "policy.generation.vllm_cfg.tensor_parallel_size=1",
        ],
    ),
}


@pytest.fixture(scope="module")
def nemo_rl():
    found = require_nemo_rl()
    if not found.version.startswith("0.7"):
        pytest.skip(f"the stand-ins have the methods that NeMo-RL 0.7 calls, not those of {found.version}")
    tests = str(Path(__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", tests)  # the stand-ins reach the trainer's actors
        patch.setenv("NEMO_RL_PY_EXECUTABLES_SYSTEM", "1")
        with ray_here(gpus=2):
            import ray

            patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
            # read from the variable when NeMo-RL is imported, which another test may have done
            patch.setattr("nemo_rl.distributed.ray_actor_environment_registry.USE_SYSTEM_EXECUTABLE", True)
            yield


@pytest.fixture(autouse=True)
def stand_ins(nemo_rl, monkeypatch):
    """vLLM and the policy, where `setup` looks for them; the cluster is the module's own."""
    from contextlib import nullcontext

    from nemo_rl.algorithms import grpo
    from support.gpu_stand_ins import BigramPolicy, CannedVllm

    from nemo_thinkprune.cluster import driver

    monkeypatch.setattr(grpo, "VllmGeneration", CannedVllm)
    monkeypatch.setattr(grpo, "Policy", BigramPolicy)
    monkeypatch.setattr(driver, "ray_cluster", lambda **_: nullcontext())
    for one in (CannedVllm, BigramPolicy):
        one.made.clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from nemo_thinkprune.data.tiny_model import write_model_folder

    return write_model_folder(tmp_path_factory.mktemp("model") / "tiny")


def make_job(model, folder, mode, *overrides):
    """A shipped recipe for GPUs with everything but the path of its data made small."""
    from support.gpu_stand_ins import KINDS, LIMIT

    name, sizes = MODES[mode]
    small = [
        *sizes,
        "data.max_input_seq_length=128",
        f"thinkprune.limits=[{LIMIT}]",
        f"thinkprune.validation.samples={len(KINDS)}",
        f"grpo.num_generations_per_prompt={len(KINDS)}",
        f"grpo.max_num_steps={STEPS}",
        "grpo.val_period=2",
        "checkpointing.save_period=1",
        "thinkprune.scoring.workers=1",
        "thinkprune.scoring.deadline_s=60",
    ]
    job = shipped_job(model, folder, name, *small, *overrides, limit=LIMIT)
    check_for_nemo_rl(job.recipe, on_cpu=False)
    return job


def shipped_job(model, folder, name, *overrides, **values):
    """A shipped recipe with a small model, and few problems whose answer is 7."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, first, count in (("train", 0, PROBLEMS), ("held_out", 8, HELD_OUT)):
        lines = [
            json.dumps(
                {"id": f"{file}{n}", "question": f"start {n} ; a {7 - n:+d} ; result ?", "answer": "7"}
            )
            for n in range(first, first + count)
        ]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    recipe = load_recipe(
        recipes_folder() / f"{name}.yaml",
        [
            f"policy.model_name={model}",
            f"data.train={{data_path: {folder / 'train.jsonl'}}}",
            f"data.validation={{data_path: {folder / 'held_out.jsonl'}, sources: [held_out]}}",
            "thinkprune.report_data=null",
            f"grpo.num_prompts_per_step={PROMPTS}",
            *overrides,
        ],
    )
    folder = folder / "run"
    return Job(kind="train", run_dir=folder, recipe=recipe, model=str(model), engine="nemo-rl", **values)


def drive(job, *, stop_after=None):
    """Run the job to its end, or ask it to stop as soon as it tells of step `stop_after`; where it stopped."""
    from support.gpu_stand_ins import BigramPolicy, CannedVllm

    from nemo_thinkprune.cluster.driver import run

    job.run_dir.mkdir(parents=True, exist_ok=True)
    context = RankContext(
        rank=0, world=1, rendezvous=job.run_dir, pipe=os.open(job.run_dir / "told", os.O_WRONLY | os.O_CREAT)
    )
    tell = context.beat

    def beat(phase, step, **values):
        tell(phase, step, **values)
        if phase == "step" and step == stop_after:
            context.request_stop()

    context.beat = beat
    try:
        run(job, context)
    finally:  # a driver's Ray ends with it; this one's goes on
        for part in (*CannedVllm.made, *BigramPolicy.made):
            part.given["cluster"].shutdown()
    return context.stopped_step


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(run):
    """Rows of steps and of validations, by step."""
    both = ({}, {})
    for row in rows(run / "metrics.jsonl"):
        both["validation" in row][row["step"]] = row
    return both


def check(model, job, *, last=STEPS, rule="zero", lost=()):
    """The records of steps 1 to `last`: every group has every kind of response, each with its reward.

    In the steps `lost` groups may be missing.
    """
    from support.gpu_stand_ins import KINDS, RESPONSES, responses

    earned = [response[2 if rule == "zero" else 3] for response in RESPONSES.values()]
    lengths = [len(ids) for ids in responses(str(model))]
    due = Counter(zip(lengths, earned, strict=True))
    cut = sum(not ended for _, ended, *_ in RESPONSES.values()) / len(KINDS)
    steps, validations = metrics(job.run_dir)
    ledger = {row["step"]: row["problem_ids"] for row in rows(job.run_dir / "ledger.jsonl")}
    assert sorted(steps) == sorted(ledger) == list(range(1, last + 1))
    for number in range(1, last + 1):
        row = steps[number]
        assert row["reward_mean"] == pytest.approx(sum(earned) / len(KINDS))
        assert row["response_tokens_mean"] == pytest.approx(sum(lengths) / len(KINDS))
        assert row["truncated_share"] == pytest.approx(cut)
        assert row["trained_tokens"] == PROMPTS * sum(lengths) and row["updates"] == 1
        assert row["lr"] == 1e-6 and row["grad_norm"] > 0 and (row["kl"] > 0) == (number > 1)
        assert row["timing"]["update_s"] > 0 and row["timing"]["step_s"] > 0
        groups = defaultdict(list)
        for response in rows(job.run_dir / "rollouts" / f"step_{number}.jsonl"):
            groups[response["problem_id"]].append(response)
        assert list(groups) == ledger[number]
        assert len(groups) == PROMPTS or number in lost
        for members in groups.values():
            assert Counter((one["response_tokens"], one["reward"]) for one in members) == due
            assert [one["sample"] for one in members] == list(range(len(KINDS)))
    for row in validations.values():
        found = row["validation"]
        assert found["problems"] == HELD_OUT and found["accuracy"] == pytest.approx(sum(earned) / len(KINDS))
    return ledger, validations


def test_a_synchronous_run(model, tmp_path):
    from support.gpu_stand_ins import KINDS, BigramPolicy, CannedVllm

    job = make_job(model, tmp_path, "synchronous")
    assert drive(job) is None
    ledger, validations = check(model, job)
    assert sorted(validations) == [0, 2, 3]
    assert sorted(problem for step in ledger.values() for problem in step) == [
        f"train{n}" for n in range(PROBLEMS)
    ]
    [policy], [vllm] = BigramPolicy.made, CannedVllm.made
    batch = policy.given["batch"]
    assert batch["advantages"].shape == batch["input_ids"].shape and len(batch["input_ids"]) == PROMPTS * len(
        KINDS
    )
    assert batch["sample_mask"].tolist() == [1] * PROMPTS * len(KINDS)  # cut responses are trained too
    assert vllm.calls.count("refit colocated") == STEPS + 1 and "shutdown" in policy.calls
    saved = sorted(path.name for path in (job.run_dir / "checkpoints").iterdir())
    assert saved == [f"step_{number}" for number in range(1, STEPS + 1)]


def test_a_synchronous_run_on_the_asynchronous_engine_stops_as_asked_and_goes_on(model, tmp_path):
    from support.gpu_stand_ins import BigramPolicy

    rule = "score_cut_text"
    job = make_job(model, tmp_path, "synchronous on the asynchronous engine", f"thinkprune.truncation={rule}")
    assert drive(job, stop_after=1) == 1
    check(model, job, last=1, rule=rule)
    assert drive(job) is None
    _, resumed = BigramPolicy.made
    assert resumed.given["weights_path"] == job.run_dir / "checkpoints" / "step_1" / "policy" / "weights"
    check(model, job, rule=rule)


def test_an_asynchronous_run_stops_as_asked_and_goes_on(model, tmp_path):
    from support.gpu_stand_ins import BigramPolicy, CannedVllm

    job = make_job(model, tmp_path, "asynchronous")
    assert drive(job, stop_after=1) == 1
    check(model, job, last=1)
    [policy], [vllm] = BigramPolicy.made, CannedVllm.made
    assert "shutdown" in policy.calls and "shutdown" in vllm.calls and vllm.calls.count("refit") == 2
    assert vllm.given["collective"] == (2, 1)
    assert drive(job) is None
    assert BigramPolicy.made[-1].given["weights_path"] is not None
    steps, validations = metrics(job.run_dir)
    assert sorted(steps) == [1, 2, 3] and sorted(validations) == [0, 2, 3]
    assert (job.run_dir / "checkpoints" / "step_1" / "replay_buffer.pt").is_file()
    check(model, job, lost=(2, 3))  # what the first attempt scored and the replay buffer kept


def test_what_the_asynchronous_trainer_keeps_to_itself_ends_the_run(model, tmp_path, monkeypatch):
    from nemo_thinkprune.training.run_folder import RunFolder

    rule = "score_cut_text"
    job = make_job(model, tmp_path, "asynchronous", f"thinkprune.truncation={rule}")
    write = RunFolder.write_metrics

    def full(folder, step, row):
        if step == 2:
            raise OSError("no space left")
        write(folder, step, row)

    monkeypatch.setattr(RunFolder, "write_metrics", full)
    with pytest.raises(OSError, match="no space left"):
        drive(job)
    (job.run_dir / "ledger.jsonl").write_text(
        (job.run_dir / "ledger.jsonl").read_text().splitlines()[0] + "\n"
    )
    check(model, job, last=1, rule=rule)


SETUPS = {  # recipe: GPUs of each training node, GPUs that generate
    "r1-distill-qwen-1.5b-4k": ([8], [8]),
    "thinkprune-as-released": ([8], [8]),
    "qwq-32b-4k-4n8g": ([8] * 4, [8] * 4),
    "qwq-32b-4k-8n8g-async": ([8] * 4, [8] * 4),
}


@pytest.mark.parametrize("name", SETUPS)
def test_what_setup_hands_to_vllm_and_to_the_policy(model, tmp_path, monkeypatch, name):
    """Shipped recipes at their own sizes, but for the model and the data; up to where workers would start."""
    from nemo_rl.distributed.virtual_cluster import RayVirtualCluster
    from support.gpu_stand_ins import BigramPolicy, CannedVllm

    from nemo_thinkprune.cluster import driver
    from nemo_thinkprune.cluster.stopping import StopTraining

    given = []

    def run_trainer(*parts):
        given.append(parts)
        raise StopTraining(0)

    monkeypatch.setattr(driver, "run_trainer", run_trainer)
    monkeypatch.setattr("nemo_rl.data.utils.create_env", lambda env_name, env_config: (env_name, env_config))
    monkeypatch.setattr(
        RayVirtualCluster,
        "get_master_address_and_port",
        lambda _: ("here", 1),  # it would place 64 GPUs
    )
    start = tmp_path / "iter_0000000"
    job = shipped_job(model, tmp_path, name, limit=4000, init_weights=start)
    assert drive(job) == 0
    [vllm], [policy] = CannedVllm.made, BigramPolicy.made
    [(parts, tokenizer, environments)] = given
    recipe, config = job.recipe, policy.given["config"]
    assert (
        policy.given["cluster"]._bundle_ct_per_node_list,
        vllm.given["cluster"]._bundle_ct_per_node_list,
    ) == SETUPS[name]
    asynchronous = recipe.grpo.async_grpo.enabled
    assert (vllm.given["cluster"] is policy.given["cluster"]) != asynchronous
    assert vllm.given.get("collective") == ((64, 32) if asynchronous else None)

    assert vllm.cfg["max_new_tokens"] == 4000 and vllm.cfg["stop_token_ids"] == [tokenizer.eos_token_id]
    assert vllm.cfg["model_name"] == config["model_name"] == str(model)
    assert vllm.cfg["vllm_cfg"]["max_model_len"] >= recipe.data.max_input_seq_length + 4000
    assert (
        vllm.cfg["vllm_cfg"]["tensor_parallel_size"] == recipe.policy.generation.vllm_cfg.tensor_parallel_size
    )
    assert (vllm.cfg["temperature"], vllm.cfg["top_p"], vllm.cfg["top_k"]) == (1.0, 1.0, None)
    assert vllm.cfg["_pad_token_id"] == tokenizer.pad_token_id

    megatron = config["megatron_cfg"]
    assert megatron["train_iters"] == parts.master_config.grpo["max_num_steps"] > 0
    assert megatron["pipeline_model_parallel_size"] == recipe.policy.megatron_cfg.pipeline_model_parallel_size
    assert config["pretrained_checkpoint"] == {"path": str(start), "format": "megatron_bridge"}
    assert policy.given["weights_path"] is None and policy.given["init_reference_model"]
    assert not parts.master_config.grpo.get("skip_reference_policy_logprobs_calculation")
    weight = recipe.loss_fn.reference_policy_kl_penalty
    assert parts.loss_fn.reference_policy_kl_penalty == weight and (weight < 0) == (
        name == "thinkprune-as-released"
    )
    assert isinstance(tokenizer, ResponseTokenizer) and not isinstance(
        policy.given["tokenizer"], ResponseTokenizer
    )
    [(env, settings)], [(other, _)] = environments.train.values(), environments.validation.values()
    assert (env, other) == (ENVIRONMENT, VALIDATION_ENVIRONMENT)
    assert settings["truncation"] == recipe.thinkprune.truncation
