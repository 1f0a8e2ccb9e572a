"""Each check for the nemo-rl engine shows its message; none of them concerns the local engine."""

import json

import pytest
from support.nemo_rl_recipes import (
    ASIDE,
    ASYNC,
    COLOCATED,
    MEGATRON,
    NODE,
    NODES,
    VLLM,
    notes,
    only,
    problems,
    recipe,
)

from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.derived import room_for
from nemo_thinkprune.recipe.describe import describe_check
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.nemo_rl_support import RESTRICTIONS
from nemo_thinkprune.recipe.resources import rollout_gpus, training_gpus

# lengths and batches


def test_a_response_may_not_fill_the_sequence():
    keys = ["data.max_input_seq_length=64", "thinkprune.limits=[128]", "policy.max_total_sequence_length=192"]
    message = only(*keys)
    assert "= 64 and the largest limit = 128 make 192 tokens, all of" in message
    assert "truncated even if it is finished; set policy.max_total_sequence_length=256" in message
    assert problems(*keys[:2], "policy.max_total_sequence_length=193") == []
    assert check_recipe(recipe(*keys)) == []


@pytest.mark.parametrize("limit", [4000, 4096, 4095, 64])
def test_the_length_that_follows_leaves_room(limit):
    assert problems(f"thinkprune.limits=[{limit}]") == []
    assert (
        problems(f"thinkprune.limits=[{limit}]", f"policy.max_total_sequence_length={room_for(1024 + limit)}")
        == []
    )


@pytest.mark.parametrize(
    ("tokens", "total"), [(1, 64), (63, 64), (64, 128), (5024, 5056), (5119, 5120), (5120, 5184)]
)
def test_room_is_more_than_the_tokens(tokens, total):
    assert room_for(tokens) == total


def test_one_update_for_each_rollout_batch():
    message = only("policy.train_global_batch_size=512")
    assert "= 512 is not grpo.num_prompts_per_step x num_generations_per_prompt = 128 x 16 = 2048" in message
    assert message.endswith("remove the key")


@pytest.mark.parametrize(("tp", "wrong"), [(2, False), (4, True), (8, True)])
def test_batch_sizes_at_large_tensor_parallel_size(tp, wrong):
    keys = (f"cluster.gpus_per_node={tp}", f"{MEGATRON}.tensor_model_parallel_size={tp}")
    found = problems(*keys, "policy.logprob_batch_size=4")
    assert bool(found) is wrong
    if wrong:
        assert "train_micro_batch_size = 1 and policy.logprob_batch_size = 4 differ" in found[0]
        assert "remove policy.logprob_batch_size" in found[0]
    assert problems(*keys, "policy.logprob_batch_size=4", "loss_fn.force_on_policy_ratio=true") == []


# engines over GPUs


@pytest.mark.parametrize(
    ("gpus", "tp", "fits"),
    [
        (NODE, 8, True),
        (NODE, 3, False),
        (NODE, 16, False),
        (NODES, 4, True),
        (NODES, 6, False),
        (NODES, 16, True),
        (NODES, 24, False),
        ((*NODES, *ASIDE), 16, True),
        ((*NODES, *ASIDE), 32, False),
        ((*NODE, f"{COLOCATED}.enabled=false", f"{COLOCATED}.resources.gpus_per_node=4"), 2, True),
        ((*NODE, f"{COLOCATED}.enabled=false", f"{COLOCATED}.resources.gpus_per_node=4"), 8, False),
    ],
)
def test_engines_fit_into_nodes(gpus, tp, fits):
    found = problems(*gpus, f"{VLLM}.tensor_parallel_size={tp}")
    assert (found == []) is fits
    if not fits:
        assert f"{tp} x 1 = {tp} fits neither evenly into a node" in found[0]
        assert "set tensor_parallel_size to a divisor of" in found[0]


def test_pipeline_stages_of_an_engine_count():
    keys = (*NODE, f"{VLLM}.tensor_parallel_size=4", f"{VLLM}.async_engine=true")
    assert problems(*keys, f"{VLLM}.pipeline_parallel_size=2") == []
    assert "4 x 3 = 12 fits neither" in only(*keys, f"{VLLM}.pipeline_parallel_size=3")


@pytest.mark.parametrize(
    ("cluster", "resources", "says"),
    [
        (NODE, "{}", "num_nodes = null, gpus_per_node = null do not split the 8 GPUs"),
        (NODE, "{gpus_per_node: 8}", "set gpus_per_node to 1 .. 7 and remove num_nodes"),
        (NODE, "{gpus_per_node: 2, num_nodes: 2}", "do not split the 8 GPUs of the one node"),
        (NODES, "{num_nodes: 1}", "generation takes whole ones: set num_nodes to 1 .. 3"),
        (NODES, "{num_nodes: 1, gpus_per_node: 4}", "gpus_per_node to cluster.gpus_per_node = 8"),
        (NODES, "{num_nodes: 4, gpus_per_node: 8}", "set num_nodes to 1 .. 3"),
    ],
)
def test_gpus_set_aside_for_generation(cluster, resources, says):
    assert says in only(*cluster, f"{COLOCATED}.enabled=false", f"{COLOCATED}.resources={resources}")


def test_training_has_what_generation_leaves():
    both = recipe(*NODES, *ASIDE)
    assert (str(training_gpus(both)), str(rollout_gpus(both))) == ("2 x 8", "2 x 8")
    split = recipe(*NODE, f"{COLOCATED}.enabled=false", f"{COLOCATED}.resources.gpus_per_node=2")
    assert (str(training_gpus(split)), str(rollout_gpus(split))) == ("1 x 6", "1 x 2")
    shared = recipe(*NODES)
    assert training_gpus(shared) == rollout_gpus(shared)
    message = only(*NODE, f"{COLOCATED}.enabled=false", f"{COLOCATED}.resources.gpus_per_node=1")
    assert "without the 1 GPUs that generate = 7 ranks cannot be divided" in message


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([f"{VLLM}.pipeline_parallel_size=2", *NODE], f"needs {VLLM}.async_engine=true"),
        ([f"{VLLM}.expert_parallel_size=2"], "models here are dense; set 1"),
        ([f"{VLLM}.precision=fp8"], "needs loss_fn.use_importance_sampling_correction=true"),
        ([f"{VLLM}.kv_cache_dtype=fp8"], f"needs {VLLM}.precision=fp8; or set auto"),
        (["loss_fn.use_kl_in_reward=true"], "leaves the KL term out altogether; set false"),
        (
            [
                *NODE,
                f"{MEGATRON}.tensor_model_parallel_size=1",
                f"{MEGATRON}.context_parallel_size=2",
                "policy.sequence_packing.enabled=false",
            ],
            "context_parallel_size above 1 needs policy.sequence_packing.enabled=true",
        ),
        ([f"{MEGATRON}.optimizer.optimizer_cpu_offload=true"], "set policy.megatron_cfg.optimizer.optimizer_off"),
        (["policy.draft.enabled=true"], "excludes policy.sequence_packing; disable one"),
    ],
)  # fmt: skip
def test_what_nemo_rl_would_refuse_once_it_runs(keys, says):
    assert says in only(*keys)


# the asynchronous trainer


def test_an_asynchronous_recipe_passes():
    assert problems(*ASYNC) == []


@pytest.mark.parametrize(
    ("undo", "says"),
    [
        ("loss_fn.use_importance_sampling_correction=false", "needs loss_fn.use_importance_sampling_correction=true"),
        (f"{COLOCATED}.enabled=true", f"needs {COLOCATED}.enabled=false"),
        (f"{VLLM}.async_engine=false", f"needs {VLLM}.async_engine=true"),
        ("grpo.async_grpo.max_trajectory_age_steps=0", "max_trajectory_age_steps of at least 1"),
        ("data_plane.enabled=true", "needs data_plane=null"),
        ("grpo.use_dynamic_sampling=true", "grpo.use_dynamic_sampling = True"),
        ("grpo.reward_scaling.enabled=true", "grpo.reward_scaling.enabled = True"),
        ("grpo.reward_shaping.enabled=true", "grpo.reward_shaping.enabled = True"),
        ("data.use_multiple_dataloader=true", "data.use_multiple_dataloader = True"),
        (f"{COLOCATED}.resources.num_nodes=null", "on several nodes generation takes whole ones"),
    ],
)  # fmt: skip
def test_what_the_asynchronous_trainer_needs(undo, says):
    assert says in only(*ASYNC, undo)


def test_old_responses_gain_nothing_without_updates_in_flight():
    keys = (*ASYNC, "grpo.async_grpo.max_trajectory_age_steps=2")
    assert "without in_flight_weight_updates=true" in notes(*keys)[-1]
    assert len(notes(*keys, "grpo.async_grpo.in_flight_weight_updates=true")) == len(notes(*keys)) - 1


# settings that our part of the engine replaces

OTHERS = {
    "loss_fn.positive_example_nll_weight": 0.1,
    "grpo.max_rollout_turns": 2,
    "grpo.adv_estimator.name": "gdpo",
    "grpo.invalid_tool_call_advantage": -1.0,
    "grpo.malformed_thinking_advantage": -1.0,
    "policy.tokenizer.chat_template": "chat.jinja",
    "policy.tokenizer.chat_template_kwargs": {"a": 1},
    "policy.generation.backend": "sglang",
    "policy.generation.stop_strings": ["</answer>"],
    "data.shuffle": False,
    "data.num_prompts_per_dataloader": 4,
    "data.custom_dataloader": "a.b",
    "thinkprune.length_reward.name": "arora_zanette",
}


@pytest.mark.parametrize("rule", RESTRICTIONS, ids=lambda rule: rule.path)
def test_what_the_engine_cannot_honour(rule):
    value = OTHERS.get(rule.path, True)
    message = only(f"{rule.path}={json.dumps(value)}")
    assert message == f"  {rule.path} = {value!r}: the nemo-rl engine cannot honour this; {rule.advice}"


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("prompt_file", "examples/prompts/cot.txt", "prompts are built by thinkprune.prompt_family"),
        ("system_prompt_file", "system.txt", "prompts are built by thinkprune.prompt_family"),
        ("download_dir", "cache", "data come from data_path"),
        ("dataset_name", "OpenMathInstruct-2", "it reads data_path"),
        ("subset", "main", "it reads data_path"),
        ("data_files", "a.jsonl", "it reads data_path"),
        ("env_name", "math", "responses are scored by this program's own verifier"),
        ("processor", "math_hf_data_processor", "prompts are built by thinkprune.prompt_family"),
    ],
)
@pytest.mark.parametrize("where", ["data.train.0", "data.validation.0", "data.default"])
def test_keys_of_data_sets(key, value, advice, where):
    name = where.split(".")[1]
    entry = {key: value} if name == "default" else {"data_path": "p", key: value}
    message = only(f"data.{name}={json.dumps(entry)}")
    assert message.startswith(f"  {where}.{key} = {value!r}: the nemo-rl engine cannot honour this; {advice}")


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("data.train=[{split: train}]", "data.train.0: the nemo-rl engine needs data_path"),
        ("env.thinkprune.math_verify_impl=dapo_math_verify", "env.thinkprune.math_verify_impl: the nemo-rl engine"),
        ("env.math.num_workers=4", "env.math: the nemo-rl engine scores every response in its own environment"),
        ("policy.tokenizer.name=other", "= 'other': the tokenizer is that of policy.model_name"),
        ("checkpointing.metric_name=train:reward_mean", "ends the run at the first checkpoint"),
        ("logger.mlflow.tracking_uri=mlruns", "= 'mlruns' is relative, and NeMo-RL would look for it in"),
        ("logger.mlflow.artifact_location=artifacts", "give an absolute path"),
        (f"{VLLM}.tool_parser_plugin=plugin.py", "give an absolute path"),
        (f"{VLLM}.reasoning_parser_plugin=plugin.py", "give an absolute path"),
    ],
)  # fmt: skip
def test_names_and_paths(key, says):
    assert says in only(key)


@pytest.mark.parametrize(
    "key",
    [
        "checkpointing.metric_name=val:accuracy",
        "checkpointing.metric_name=val:mean_tokens",
        "checkpointing.metric_name=train:reward",
        "checkpointing.metric_name=null",
        "logger.mlflow.tracking_uri=http://host:5000",
        "logger.mlflow.artifact_location=/shared/artifacts",
        "data.train={data_path: p, env_name: thinkprune}",
        "policy.generation.stop_token_ids=[1, 2]",
    ],
)
def test_names_and_paths_that_pass(key):
    assert problems(key) == []


# the KL weight


@pytest.mark.parametrize("engine", ["local", "nemo-rl"])
def test_a_negative_kl_weight_is_asked_for_by_name(engine):
    negative = "loss_fn.reference_policy_kl_penalty=-1e-3"
    with pytest.raises(
        UserError, match=r"= -0\.001 pushes the policy away.*thinkprune\.allow_negative_kl=true"
    ):
        check_recipe(recipe(negative), engine=engine)
    text = describe_check(recipe(negative, "thinkprune.allow_negative_kl=true"), engine=engine)
    assert "  - 0.001 KL, k3: ref/p - log(ref/p) - 1 (pushes away from the reference)" in text


# notes


def test_validation_is_as_training():
    [note] = notes()
    assert "at the limit of the round, temperature 1, top_p 1" in note
    assert "thinkprune.validation.temperature = 0.6, thinkprune.validation.top_p = 0.95 hold for" in note
    same = ("thinkprune.validation.temperature=1.0", "thinkprune.validation.top_p=1.0")
    assert notes(*same) == []
    assert "thinkprune.long_limit = 8000" in notes(*same, "thinkprune.long_limit=8000")[0]
    assert not any("validates as it trains" in note for note in notes("data.validation=null"))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("thinkprune.report_data=r.jsonl", "thinkprune eval CHECKPOINT --data r.jsonl --limit 4000 -n 16"),
        ("thinkprune.runtime.device=cpu", "device = cpu is for the local engine"),
        ("env.thinkprune.num_workers=4", "thinkprune.scoring.workers is the number"),
    ],
)
def test_notes_on_what_another_engine_or_key_does(key, says):
    assert says in notes(key)[-1]
    assert len(notes(key)) == 2


def test_the_data_plane_is_said_to_be_untried():
    assert any(
        "needs TransferQueue and an installed nemo-rl" in note for note in notes("data_plane.enabled=true")
    )


def test_advantages_on_a_gpu_with_the_data_plane():
    said = "grpo.calculate_advantages_on_gpu has no effect with data_plane.enabled"
    keys = ("data_plane.enabled=true", "grpo.calculate_advantages_on_gpu=true")
    assert said in notes(*keys)
    assert said not in notes(keys[0]) and said not in notes(keys[1])
