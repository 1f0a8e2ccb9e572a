"""What Megatron-Core, vLLM and NeMo-RL's set-up would refuse once processes run, and the message before."""

import json

import pytest
from support.nemo_rl_recipes import ASIDE, MEGATRON, NODE, NODES, VLLM, only, problems, recipe

from nemo_thinkprune.recipe.checks_megatron import GPU_RESTRICTIONS, VLLM_KEYWORDS
from nemo_thinkprune.recipe.errors import UserError

PADDING = "policy.make_sequence_length_divisible_by"
CONTEXT = (*NODE, f"{MEGATRON}.context_parallel_size=2")

# lengths of packed sequences


@pytest.mark.parametrize(("tp", "cp", "multiple"), [(1, 1, 1), (2, 1, 2), (1, 2, 4), (2, 2, 8), (4, 2, 16)])
def test_padding_follows_tensor_and_context_parallelism(tp, cp, multiple):
    keys = (
        "cluster.gpus_per_node=8",
        f"{MEGATRON}.tensor_model_parallel_size={tp}",
        f"{MEGATRON}.context_parallel_size={cp}",
    )
    assert recipe(*keys).policy.make_sequence_length_divisible_by == multiple
    assert problems(*keys) == []


def test_padding_that_context_parallelism_cannot_share():
    assert only(*CONTEXT, f"{PADDING}=2") == (
        f"  {PADDING} = 2 is not a multiple of tensor parallel size x 2 x context parallel size = 2 x 2 x 2 = 8; "
        "remove the key"
    )
    assert problems(*CONTEXT, f"{PADDING}=16") == []


def test_the_sequence_length_is_a_multiple_of_the_padding():
    keys = ("cluster.gpus_per_node=64", f"{MEGATRON}.context_parallel_size=64")
    assert recipe(*keys).policy.max_total_sequence_length == 5120
    assert recipe().policy.max_total_sequence_length == 5056


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            ["policy.max_total_sequence_length=5025", f"{PADDING}=64"],
            "policy.sequence_packing.train_mb_tokens = 5025: a sequence of 5024 tokens becomes one of 5056 in "
            f"multiples of {PADDING} = 64 and does not fit; set at least 5056",
        ),
        (
            [
                "policy.max_total_sequence_length=5025",
                "policy.sequence_packing.enabled=false",
                "policy.dynamic_batching.enabled=true",
            ],
            "policy.dynamic_batching.train_mb_tokens = 5025: a sequence of 5024 tokens becomes one of 5056 in "
            "multiples of policy.dynamic_batching.sequence_length_round = 64 and does not fit; set at least 5056",
        ),
    ],
)  # fmt: skip
def test_the_longest_padded_sequence_fits_into_a_micro_batch(keys, says):
    found = problems(*keys)
    assert found[0] == f"  {says}"
    assert [line.partition(" = ")[0].rpartition(".")[2] for line in found] == [
        "train_mb_tokens",
        "logprob_mb_tokens",
    ]
    section = says.partition(".train_mb")[0]
    assert problems(*keys, f"{section}.train_mb_tokens=5056", f"{section}.logprob_mb_tokens=5056") == []
    assert problems(*keys, on_cpu=True) == []


# the optimizer and its schedule

OPTIMIZER, SCHEDULER = f"{MEGATRON}.optimizer", f"{MEGATRON}.scheduler"
PLAIN = f"{OPTIMIZER}.use_precision_aware_optimizer=false"
DECAY = (f"{SCHEDULER}.start_weight_decay=0.1", f"{SCHEDULER}.end_weight_decay=0.2")
REPAIRED = [
    (
        [f"{OPTIMIZER}.optimizer=sgd"],
        f"{OPTIMIZER}.optimizer = sgd: Megatron-Core's precision-aware optimizer is adam; set {PLAIN}",
        [PLAIN],
    ),
    (
        [f"{OPTIMIZER}.use_distributed_optimizer=false"],
        f"{OPTIMIZER}.use_distributed_optimizer is false: Megatron-Core's precision-aware optimizer is distributed; "
        f"set {PLAIN}, or remove the key",
        [PLAIN],
    ),
    (
        [f"{OPTIMIZER}.min_lr=1e-5"],
        f"{OPTIMIZER}.min_lr = 1e-05 is above lr = 1e-06, which Megatron-Core refuses even where the rate is constant; "
        "remove the key",
        [f"{OPTIMIZER}.lr=1e-5"],
    ),
    (
        [f"{SCHEDULER}.lr_decay_style=WSD", f"{SCHEDULER}.lr_decay_iters=10"],
        f"{SCHEDULER}.lr_decay_style = WSD: NeMo-RL has no key for the length of its decay, which Megatron-Core needs; "
        "use constant, linear, cosine or inverse-square-root",
        [f"{SCHEDULER}.lr_decay_style=cosine"],
    ),
    (
        [f"{SCHEDULER}.lr_warmup_iters=13", "grpo.max_num_steps=13"],
        f"{SCHEDULER}.lr_warmup_iters = 13 must be below grpo.max_num_steps = 13: Megatron-Core wants a step after the "
        "warm-up",
        ["grpo.max_num_steps=14"],
    ),
    (
        [f"{SCHEDULER}.start_weight_decay=0.1"],
        f"{SCHEDULER}.start_weight_decay = 0.1 is above end_weight_decay = 0.01: in Megatron-Core the weight decay can "
        f"only grow; remove both keys for {OPTIMIZER}.weight_decay throughout",
        [f"{SCHEDULER}.end_weight_decay=0.1"],
    ),
    (
        [*DECAY],
        f"{SCHEDULER}.start_weight_decay = 0.1 and end_weight_decay = 0.2 differ, but weight_decay_incr_style is "
        "constant; set linear or cosine, or remove both keys",
        [f"{SCHEDULER}.weight_decay_incr_style=linear"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "says", "repair"), REPAIRED)
def test_what_megatron_core_asserts_of_optimizer_and_schedule(keys, says, repair):
    assert only(*keys) == f"  {says}"
    assert problems(*keys, *repair) == []


# parts of NeMo-RL that are not for training these models

VALUES = {
    f"{MEGATRON}.transformer_impl": "inference_optimized",
    f"{MEGATRON}.expert_model_parallel_size": 2,
    f"{MEGATRON}.expert_tensor_parallel_size": 2,
    f"{MEGATRON}.mtp_num_layers": 1,
    "policy.quant_cfg": "NVFP4_DEFAULT_CFG",
    "policy.generation.quant_cfg": "NVFP4_DEFAULT_CFG",
}


@pytest.mark.parametrize("rule", GPU_RESTRICTIONS, ids=lambda rule: rule.path)
def test_what_gpu_workers_cannot_honour(rule):
    value = VALUES.get(rule.path, True)
    message = only(f"{rule.path}={json.dumps(value)}")
    assert message == f"  {rule.path} = {value!r}: the nemo-rl engine cannot honour this; {rule.advice}"


def test_why_adapters_are_refused():
    message = only(f"{MEGATRON}.peft.enabled=true")
    assert (
        "the adapters alone, so the next round and `thinkprune eval` would be without the weights" in message
    )


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        (
            "policy.sequence_packing.algorithm=best_fit",
            "'first_fit_shuffle' or 'modified_first_fit_decreasing'",
        ),
        (f"{OPTIMIZER}.params_dtype=fp32", "'bfloat16', 'float16' or 'float32'"),
        (f"{MEGATRON}.attention_backend=flash_attn", "'flash', 'fused', 'unfused', 'local' or 'auto'"),
        (f"{MEGATRON}.cuda_graph_impl=on", "'none', 'local', 'transformer_engine' or 'full_iteration'"),
        (f"{MEGATRON}.recompute_modules=[attention]", "'core_attn', 'layernorm' or 'mlp'"),
        (f"{MEGATRON}.fp8_cfg.fp8=e5m2", "'e4m3' or 'hybrid'"),
        (f"{MEGATRON}.fp8_cfg.fp8_recipe=block", "'tensorwise', 'delayed', 'mxfp8' or 'blockwise'"),
        (f"{VLLM}.precision=bf16", "'auto' or 'fp8'"),
        (f"{VLLM}.gpu_memory_utilization=0.0", "a number above 0"),
        (f"{VLLM}.gpu_memory_utilization=1.5", "a number not above 1"),
    ],
)
def test_names_that_megatron_core_vllm_or_nemo_rl_do_not_know(key, choices):
    with pytest.raises(UserError) as caught:
        recipe(key)
    assert key.partition("=")[0] in str(caught.value)
    assert choices in str(caught.value)


# vLLM


@pytest.mark.parametrize(("name", "key"), VLLM_KEYWORDS.items())
def test_keywords_that_nemo_rl_gives_vllm(name, key):
    instead = f"set {key} instead" if key else "remove it"
    assert only(f"policy.generation.vllm_kwargs={{{name}: 1}}") == (
        f"  policy.generation.vllm_kwargs.{name}: NeMo-RL sets {name} of vLLM itself; {instead}"
    )


def test_other_keywords_of_vllm_pass():
    assert problems("policy.generation.vllm_kwargs={max_num_seqs: 64, hf_overrides: {}}") == []


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 28, "num_key_value_heads": 4}))
    return f"policy.model_name={tmp_path}"


@pytest.mark.parametrize("size", [1, 2, 4, 28])
def test_heads_that_an_engine_can_share(model, size):
    assert problems(model, "grpo.num_prompts_per_step=28", f"cluster.gpus_per_node={size}",
                    "policy.train_global_batch_size=448", f"{VLLM}.tensor_parallel_size={size}") == []  # fmt: skip


@pytest.mark.parametrize("size", [7, 8, 14])
def test_heads_that_an_engine_cannot_share(model, size):
    keys = (model, "grpo.num_prompts_per_step=56", f"cluster.gpus_per_node={size}")
    assert only(*keys, f"{VLLM}.tensor_parallel_size={size}") == (
        f"  {VLLM}.tensor_parallel_size = {size}: vLLM cannot share the model's 28 attention heads and 4 "
        "key-value heads by that; use one of 1, 2, 4, 28"
    )
    assert problems(*keys, f"{VLLM}.tensor_parallel_size={size}", on_cpu=True) == []


# the cluster and its clock


@pytest.mark.parametrize("given", ["00:03:45:00", "1:2:3:4", "0:0:90:0"])
def test_a_time_to_save_by(given):
    assert problems(f'checkpointing.checkpoint_must_save_by="{given}"') == []


@pytest.mark.parametrize("given", ["03:45:00", "4h", "", "00:03:45:00.5", "0:0:-1:0"])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_a_time_to_save_by_that_nemo_rl_cannot_read(given, on_cpu):
    assert only(f'checkpointing.checkpoint_must_save_by="{given}"', on_cpu=on_cpu) == (
        f"  checkpointing.checkpoint_must_save_by = {given!r} is not DD:HH:MM:SS, such as '00:03:45:00' for 3 hours "
        "and 45 minutes"
    )


@pytest.mark.parametrize("prefix", ["cluster.master_port_range", "policy.generation.port_range"])
def test_ranges_of_ports(prefix):
    section, _, name = prefix.rpartition(".")
    assert only(f"{prefix}_low=30000", f"{prefix}_high=30000") == (
        f"  {section}.{name}_low = 30000 and {name}_high = 30000 hold no ports: the first must be below the second, "
        "and that at most 65535"
    )
    assert "hold no ports" in only(f"{prefix}_high=70000", on_cpu=True)
    assert problems(f"{prefix}_low=30000", f"{prefix}_high=30001") == []


def test_segments_of_the_nodes_that_train():
    assert problems(*NODES, "cluster.segment_size=4") == []
    assert "cluster.segment_size = 4 does not divide the 2 nodes that train" in only(
        *NODES, *ASIDE, "cluster.segment_size=4"
    )
    assert "set null" in only(*NODES, "cluster.segment_size=3")
