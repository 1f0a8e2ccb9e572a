"""What `--on-cpu` changes in the checks, and how a NeMo-RL run is described."""

import json

import pytest
from support.nemo_rl_recipes import ASYNC, MEGATRON, NODE, VLLM, notes, only, problems, recipe

from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.describe import describe_check
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.recipe.local_support import POLICY_RESTRICTIONS
from nemo_thinkprune.recipe.nemo_rl_support import CPU_TUNING

# --on-cpu


def test_on_cpu_is_for_nemo_rl():
    with pytest.raises(UserError, match="--on-cpu is for --engine nemo-rl"):
        check_recipe(recipe(), engine="local", on_cpu=True)


def test_the_asynchronous_trainer_is_refused_on_a_cpu():
    found = "\n".join(problems(*ASYNC, on_cpu=True))
    assert (
        "grpo.async_grpo.enabled = True: the CPU worker (--on-cpu) cannot honour this; it runs the synch"
        in found
    )
    assert "set grpo.async_grpo.enabled=false" in found
    assert "policy.generation.colocated.enabled = False" in found


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["data_plane.enabled=true"], "it runs the synchronous trainer; set data_plane=null"),
        (["grpo.calculate_advantages_on_gpu=true"], "there is no GPU; remove the key"),
        (
            ["policy.generation.mcore_generation_config.async_engine=true"],
            "it generates in batches; set false",
        ),
        (["policy.precision=float16"], "use bfloat16 or float32"),
        ([f"{MEGATRON}.peft.enabled=true"], "trains all weights; set false"),
        ([f"{MEGATRON}.fp8_cfg.enabled=true"], "samples and trains in policy.precision"),
        ([f"{MEGATRON}.optimizer.optimizer=sgd"], "use adam"),
        ([f"{VLLM}.precision=fp8"], "samples and trains in policy.precision"),
        ([f"{MEGATRON}.scheduler.end_weight_decay=0.5"], "weight decay is constant"),
    ],
)
def test_what_the_cpu_worker_cannot_do(keys, says):
    assert says in only(*keys, on_cpu=True)


def test_the_cpu_worker_is_bound_by_the_local_engines_policy_but_not_by_its_loop():
    paths = {rule.path for rule in POLICY_RESTRICTIONS}
    assert {
        f"{MEGATRON}.context_parallel_size",
        "policy.hf_config_overrides",
        f"{VLLM}.kv_cache_dtype",
    } <= paths
    assert all(path.startswith("policy.") for path in paths)
    assert problems("logger.mlflow_enabled=true", f"{MEGATRON}.env_vars={{A: b}}", on_cpu=True) == []


def test_layouts_of_vllm_do_not_matter_on_a_cpu():
    keys = (*NODE, f"{VLLM}.tensor_parallel_size=3", f"{VLLM}.pipeline_parallel_size=5")
    assert problems(*keys, on_cpu=True) == []
    assert len(problems(*keys)) == 2


def test_what_nemo_rls_loop_asserts_holds_on_a_cpu_too():
    tp = (
        f"{MEGATRON}.tensor_model_parallel_size=4",
        "cluster.gpus_per_node=4",
        "policy.logprob_batch_size=2",
    )
    assert "differ at tensor parallel size 4" in only(*tp, on_cpu=True)
    assert "ThinkPrune makes one update" in only("policy.train_global_batch_size=512", on_cpu=True)


@pytest.mark.parametrize("path", CPU_TUNING)
def test_tuning_keys_that_the_cpu_worker_ignores(path):
    value = {"policy.generation.vllm_kwargs": {"a": 1}}.get(path, True)
    extra = ["policy.sequence_packing.enabled=false"] if "dynamic" in path else []
    extra += [f"{MEGATRON}.optimizer.optimizer_offload_fraction=1.0"] if "offload" in path else []
    found = notes(f"{path}={json.dumps(value)}", *extra, on_cpu=True)
    assert found[-1] == f"{path}: changes speed or memory only; the CPU worker (--on-cpu) ignores it"


def test_the_cpu_worker_is_evaluated():
    key = "thinkprune.report_data=r.jsonl"
    assert any("not evaluated by this engine" in note for note in notes(key))
    assert notes(key, on_cpu=True) == notes(on_cpu=True)


# what will be started


def test_the_layout_says_what_is_started_where():
    text = describe_check(load_recipe("qwq-32b-4k-4n8g"), engine="nemo-rl")
    assert "  NeMo-RL, synchronous trainer\n" in text
    assert "  training: 32 GPUs = TP 4 x PP 4 x DP 2, 4 x 8 (nodes x GPUs)\n" in text
    assert "  rollouts: 8 vLLM engines of TP 4 on the same GPUs\n" in text
    text = describe_check(load_recipe("qwq-32b-4k-8n8g-async"), engine="nemo-rl")
    assert "  NeMo-RL, asynchronous trainer, responses at most 1 step old\n" in text
    assert "  training: 32 GPUs = TP 4 x PP 4 x DP 2, 4 x 8 (nodes x GPUs)\n" in text
    assert "  rollouts: 8 vLLM engines of TP 4 on 4 x 8 GPUs of their own\n" in text
    text = describe_check(recipe("data_plane.enabled=true"), engine="nemo-rl")
    assert "  NeMo-RL, synchronous trainer with the data plane (transfer_queue, simple)\n" in text
    assert "  rollouts: 1 vLLM engine of TP 1 on the same GPUs\n" in text
    stages = (*NODE, f"{VLLM}.pipeline_parallel_size=2", f"{VLLM}.async_engine=true")
    assert "4 vLLM engines of TP 1 x PP 2" in describe_check(recipe(*stages), engine="nemo-rl")
    text = describe_check(recipe(*NODE), engine="nemo-rl", on_cpu=True)
    assert "  8 CPU workers = TP 2 x PP 1 x DP 4, which train and generate\n" in text


def test_the_rounds_say_how_accuracy_is_measured():
    keys = ("thinkprune.long_limit=8000",)
    assert "accuracy at 8000 tokens, 16 responses a problem at temperature 0.6" in describe_check(
        recipe(*keys)
    )
    text = describe_check(recipe(*keys), engine="nemo-rl")
    assert "accuracy at the limit of the round, 16 responses a problem at temperature 1, top_p 1" in text
