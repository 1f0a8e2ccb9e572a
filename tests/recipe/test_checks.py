import json

import pytest

from nemo_thinkprune.recipe.checks import ENGINES, check_recipe, updates_per_step
from nemo_thinkprune.recipe.describe import describe_check
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.keys import walk
from nemo_thinkprune.recipe.load import recipe_from_dict
from nemo_thinkprune.recipe.local_support import RESTRICTIONS, TUNING
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.support import value_at

BASE = {
    "policy": {"model_name": "m"},
    "data": {"train": {"data_path": "p"}, "validation": {"data_path": "v"}},
    "thinkprune": {"selection": {"baseline": "round_start"}},
}


def recipe(*overrides):
    return recipe_from_dict(BASE, overrides)


def complaint(*overrides, engine="local"):
    with pytest.raises(UserError) as caught:
        check_recipe(recipe(*overrides), engine=engine)
    return str(caught.value)


def test_the_defaults_pass_but_for_the_baseline_without_notes():
    assert check_recipe(recipe()) == []
    [note] = check_recipe(recipe(), engine="nemo-rl")
    assert note.startswith("NeMo-RL validates as it trains")


FIRST = "thinkprune.selection.baseline=first_round"
LONG = "thinkprune.long_limit=4000"


@pytest.mark.parametrize(
    ("engine", "keys", "noted"),
    [
        ("local", [FIRST], True),
        ("local", [FIRST, LONG], False),
        ("local", [FIRST, "thinkprune.limits=[4000]"], False),
        ("nemo-rl", [FIRST], True),
        ("nemo-rl", [FIRST, LONG], True),
        ("nemo-rl", [FIRST, "thinkprune.limits=[4000]"], False),
        ("nemo-rl", [FIRST, "data.validation=null"], False),
        ("nemo-rl", [], False),
    ],
)
def test_accuracies_within_different_limits_are_not_compared_unnoticed(engine, keys, noted):
    found = [note for note in check_recipe(recipe(*keys), engine=engine) if "selection.baseline" in note]
    assert bool(found) is noted
    if noted:
        assert "compare accuracy within 2000 tokens with that within 4000" in found[0]
        assert "set round_start" in found[0]
        assert ("thinkprune.long_limit" in found[0]) is (engine == "local")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("keys", [["grpo.max_val_samples=60"], ["grpo.max_val_samples=300"]])
def test_any_number_of_validation_problems_goes(engine, keys):
    check_recipe(recipe(*keys), engine=engine)


PACKED, BY_COUNT = "policy.sequence_packing.enabled=true", "policy.sequence_packing.enabled=false"
BY_TOKENS = "policy.dynamic_batching.enabled=true"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("keys", [[PACKED], [BY_COUNT, BY_TOKENS]])
def test_micro_batches_by_tokens_need_not_divide_an_update(engine, keys):
    sizes = ["grpo.num_prompts_per_step=6", "grpo.num_generations_per_prompt=8"]
    check_recipe(recipe(*sizes, *keys, "policy.train_micro_batch_size=64"), engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("overrides", "says", "advises"),
    [
        (["grpo.overlong_filtering=true"], "takes truncated responses out of the loss", "set false"),
        (["loss_fn.reference_policy_kl_penalty=-1e-3"], "= -0.001 pushes the policy away", "positive weight"),
        (["loss_fn.ratio_clip_c=0.5"], "loss_fn.ratio_clip_c = 0.5", "above 1"),
        (["loss_fn.ratio_clip_min=1.0"], "ratio_clip_min", "below 1"),
        (["grpo.skip_reference_policy_logprobs_calculation=true"], "the KL term needs them", "remove the key"),
        (["grpo.advantage_clip_low=1", "grpo.advantage_clip_high=0"], "advantage_clip_low = 1", "must be below"),
        (["policy.train_global_batch_size=100"], "does not divide", "128 x 16 = 2048"),
        (["policy.train_global_batch_size=4096"], "does not divide", "remove the key"),
        (
            ["policy.train_global_batch_size=512", "loss_fn.force_on_policy_ratio=true"],
            "needs one update per rollout batch, not 4",
            "set policy.train_global_batch_size=2048",
        ),
        (["grpo.num_generations_per_prompt=1"], "every advantage would be 0", "set at least 2"),
        (["grpo.batch_multiplier=2"], "needs grpo.use_dynamic_sampling", "set 1"),
        (["thinkprune.limits=[3000, 3000]"], "limits = [3000, 3000]", "below the one before"),
        (["policy.max_total_sequence_length=5000"], "make 5024 tokens", "raise that or remove the key"),
        (
            ["policy.generation.max_new_tokens=9", "thinkprune.limits=[600]", "policy.max_total_sequence_length=1600"],
            "the largest of thinkprune.limits = 600 make 1624",
            "raise that",
        ),
        (["policy.generation.vllm_cfg.max_model_len=4096"], "max_model_len = 4096 is below", "remove the key"),
        (["thinkprune.long_limit=3500"], "long_limit = 3500 is below", "raise it to 4000"),
        (["thinkprune.control.enabled=true"], "control.enabled needs", "thinkprune.long_limit"),
        (["thinkprune.prompt_family=plain"], "plain has no system prompt", "thinkprune.length_hint=false"),
        (["policy.generation.top_p=0.95"], "top_p = 0.95 in training", "set 1"),
        (["policy.generation.top_k=50"], "top_k = 50 in training", "set null"),
        (["policy.generation.temperature=0"], "makes all responses of a group equal", "set 1"),
        (["policy.megatron_cfg.optimizer.bf16=false"], "contradict policy.precision = bfloat16", "remove both"),
        (["policy.megatron_cfg.scheduler.lr_decay_style=linear"], "lr_decay_style linear", "needs lr_decay_iters"),
        (
            ["policy.megatron_cfg.scheduler.lr_warmup_iters=20", "policy.megatron_cfg.scheduler.lr_decay_iters=10"],
            "lr_warmup_iters",
            "below lr_decay_iters = 10",
        ),
        (
            ["policy.logprob_chunk_size=64", "policy.megatron_cfg.defer_fp32_logits=false"],
            "logprob_chunk_size needs",
            "defer_fp32_logits=true",
        ),
        (["policy.megatron_cfg.enabled=false"], "trains on Megatron-Core", "megatron_cfg.enabled=true"),
        (["policy.dtensor_cfg.enabled=true"], "trains on Megatron-Core", "dtensor_cfg.enabled=false"),
        (["policy.optimizer={name: x}"], "DTensor backend", "policy.megatron_cfg.optimizer"),
        (["on_policy_distillation={a: 1}"], "does not distil", "set null"),
        (["policy.dynamic_batching.enabled=true"], "exclude each other", "disable one"),
        (
            ["policy.dynamic_batching.enabled=true", "policy.sequence_packing.enabled=false", "cluster.gpus_per_node=2",
             "policy.megatron_cfg.pipeline_model_parallel_size=2"],
            "dynamic_batching needs pipeline_model_parallel_size 1",
            "use policy.sequence_packing",
        ),
        (["policy.sequence_packing.train_mb_tokens=100"], "train_mb_tokens = 100 is below", "remove the key"),
        (["cluster.gpus_per_node=8", "policy.megatron_cfg.tensor_model_parallel_size=3"], "= 8 ranks cannot",
         "use a multiple of 3 ranks"),
        (["cluster.gpus_per_node=3"], "cannot be shared by 3 data-parallel ranks", "make it a multiple"),
        (
            ["policy.train_micro_batch_size=3", "policy.sequence_packing.enabled=false"],
            "is not a multiple of train_micro_batch_size x",
            "3 x 1; enable policy.sequence_packing",
        ),
        (
            ["grpo.num_prompts_per_step=6", "grpo.num_generations_per_prompt=2", "cluster.gpus_per_node=3",
             "policy.train_global_batch_size=4"],
            "train_global_batch_size = 4 is not a multiple of 3 data-parallel ranks",
            "a multiple",
        ),
        (["policy.megatron_cfg.sequence_parallel=true"], "sequence_parallel needs", "set false"),
        (["policy.megatron_cfg.num_layers_in_first_pipeline_stage=2"], "more than one pipeline stage", "set null"),
    ],
)  # fmt: skip
def test_each_check_says_what_is_wrong_and_what_to_change(engine, overrides, says, advises):
    message = complaint(*overrides, engine=engine)
    assert says in message
    assert advises in message


def test_all_problems_come_in_one_message():
    message = complaint(
        "grpo.overlong_filtering=true", "policy.generation.top_p=0.5", "grpo.max_rollout_turns=3"
    )
    assert message.startswith("the recipe has 3 problems for the local engine:\n")
    assert message.count("\n") == 3


def other_value(rule):
    """A value of the right type that the rule refuses."""
    info = dict(walk(Recipe))[tuple(rule.path.split("."))]
    choices = [True, False, 7, 0.5, "other", {"a": 1}, {"a": "b"}, ["x"], None]
    choices += ["gdpo", "float16", "sgd", "linear", "WSD", "fp8", "tis", "megatron_lm"]
    from pydantic import TypeAdapter, ValidationError

    for choice in choices:
        try:
            TypeAdapter(info.annotation).validate_python(choice, strict=True)
        except ValidationError:
            continue
        if choice not in rule.allowed:
            return choice
    raise AssertionError(f"no other value for {rule.path}")


@pytest.mark.parametrize("rule", RESTRICTIONS, ids=lambda rule: rule.path)
def test_what_the_local_engine_cannot_honour_is_an_error_only_there(rule):
    value = other_value(rule)
    overrides = [f"{rule.path}={json.dumps(value)}"]
    if rule.path == "policy.pretrained_checkpoint.format":
        overrides.append("policy.pretrained_checkpoint.path=x")
    loaded = recipe(*overrides)
    with pytest.raises(UserError) as caught:
        check_recipe(loaded)
    value = value_at(loaded, rule.path)
    assert f"  {rule.path} = {value!r}: the local engine cannot honour this; {rule.advice}" in str(
        caught.value
    )
    try:
        check_recipe(loaded, engine="nemo-rl")
    except UserError as error:
        assert "local engine" not in str(error)


@pytest.mark.parametrize("path", TUNING)
def test_tuning_keys_of_other_engines_are_noted_and_ignored(path):
    value = {"policy.generation.vllm_kwargs": {"a": 1}, "logger.num_val_samples_to_print": 3}.get(path, True)
    extra = ["policy.sequence_packing.enabled=false"] if "dynamic" in path else []
    notes = check_recipe(recipe(f"{path}={json.dumps(value)}", *extra))
    assert len(notes) == 1
    assert notes[0].startswith(f"{path}: changes speed or memory")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.train=[{dataset_name: OpenMathInstruct-2}]", "data.train.0: the local engine needs data_path"),
        ("data.train={data_path: p, prompt_file: x}", "data.train.0.prompt_file = 'x'"),
        ("data.default={env_name: math}", "data.default.env_name = 'math'"),
        ("data.validation={data_path: p, repeat: 4}", "data.validation.0.repeat = 4"),
        ("env.math.math_verify_impl=dapo_math_verify", "env.math.math_verify_impl"),
        ("policy.tokenizer.name=other", "policy.tokenizer.name"),
        ("policy.generation.vllm_cfg.precision=fp8", "policy.generation.vllm_cfg.precision"),
        ("policy.megatron_cfg.scheduler.end_weight_decay=0.5", "weight decay is constant"),
    ],
)
def test_data_environment_and_followers_on_the_local_engine(override, says):
    assert says in complaint(override)


def test_notes_on_what_may_not_be_meant():
    assert "nothing is validated" in check_recipe(recipe("data.validation=null"))[0]
    assert "cannot be selected" in check_recipe(recipe("grpo.val_period=30"))[0]
    assert "starts over" in check_recipe(recipe("checkpointing.enabled=false"))[0]
    assert "fresh optimizer" in check_recipe(recipe("checkpointing.save_optimizer=false"))[0]
    assert "only the first and last step" in check_recipe(recipe("grpo.val_period=0"))[0]
    assert (
        "`thinkprune prune` starts at 4000"
        in check_recipe(recipe("thinkprune.limits=[4000]", "policy.generation.max_new_tokens=100"))[0]
    )


def test_an_unknown_engine():
    with pytest.raises(UserError, match="choose one of local, nemo-rl"):
        check_recipe(recipe(), engine="locl")


# against the model's config.json

CONFIG = {
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "max_position_embeddings": 8192,
}


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return f"policy.model_name={tmp_path}"


def layout(tp=1, pp=1, **more):
    keys = {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp, **more}
    return [
        f"cluster.gpus_per_node={tp * pp}",
        *(f"policy.megatron_cfg.{key}={value}" for key, value in keys.items()),
    ]


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 2), (1, 3), (2, 3), (4, 6)])
def test_layouts_that_divide_the_model_pass(model, tp, pp):
    assert check_recipe(recipe(model, *layout(tp, pp))) == []


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (layout(tp=3), "= 3 does not divide the model's num_key_value_heads = 4; use one of 1, 2, 4"),
        (layout(tp=8), "does not divide the model's num_attention_heads = 12; use one of 1, 2, 3, 4, 6, 12"),
        (
            layout(pp=4),
            "6 of the model's 6 layers do not divide over 4 pipeline stages; use one of 1, 2, 3, 6",
        ),
        (
            layout(pp=2, num_layers_in_first_pipeline_stage=6),
            "0 of the model's 6 layers do not divide over 1",
        ),
        (["thinkprune.long_limit=8000"], "may have 9024 tokens, but the model knows 8192 positions"),
    ],
)
def test_layouts_that_do_not_divide_the_model_are_refused(model, overrides, says):
    assert says in complaint(model, *overrides)


def test_uneven_stages_that_fit_pass(model):
    assert check_recipe(recipe(model, *layout(pp=3, num_layers_in_first_pipeline_stage=4))) == []
    both = layout(pp=2, num_layers_in_first_pipeline_stage=2, num_layers_in_last_pipeline_stage=4)
    assert check_recipe(recipe(model, *both)) == []


def test_a_folder_without_config_is_no_model(tmp_path):
    assert "has no config.json" in complaint(f"policy.model_name={tmp_path}")


# the description


def described(*overrides):
    return describe_check(recipe(*overrides))


def test_updates_per_step():
    assert updates_per_step(recipe()) == 1
    assert updates_per_step(recipe("policy.train_global_batch_size=512")) == 4


def test_the_objective_in_formulas():
    text = described()
    assert (
        "mean over the response tokens of an update of -min(r A, clip(r, 0.8, 1.2) A), r = p / p_old" in text
    )
    assert "A = (reward - mean of the group) / (std of the group + 1e-6)" in text
    assert "+ 0.001 KL, k3: ref/p - log(ref/p) - 1" in text
    assert "the clip never acts" in text


def test_the_objective_follows_the_keys():
    text = described(
        "loss_fn.token_level_loss=false", "loss_fn.ratio_clip_max=0.28", "loss_fn.ratio_clip_c=3",
        "loss_fn.reference_policy_kl_penalty=0", "grpo.normalize_rewards=false",
        "grpo.use_leave_one_out_baseline=true", "policy.train_global_batch_size=512",
        "grpo.advantage_clip_high=2", "loss_fn.positive_example_nll_weight=0.1",
    )  # fmt: skip
    assert "mean over responses of token means of -min(r A, clip(r, 0.8, 1.28) A)" in text
    assert "A = reward - mean of the others, clipped to [None, 2.0]" in text
    assert "at most 3 |A| (dual clip)" in text
    assert "no KL term, no reference policy" in text
    assert "+ 0.1 NLL of correct responses" in text
    assert "the clip never acts" not in text
    assert "= 2048 a step, 4 updates of 512" in text
    assert "-A r, r = p / stop_gradient(p)" in described("loss_fn.force_on_policy_ratio=true")
    assert "of -A log p" in described("loss_fn.disable_ppo_ratio=true")


def test_the_exact_number_of_steps_where_the_data_is_at_hand(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"question": "q"}\n' * 2470 + "\n")
    train = f"data.train={{data_path: {file}}}"
    assert "190 = min(1000000, 10 epochs x floor(2470 problems / 128) = 190)" in described(train)
    assert "50 = min(50, " in described(train, "grpo.max_num_steps=50")
    short = f"data.train=[{{data_path: {file}, max_samples: 200}}, {{data_path: {file}, max_samples: 100}}]"
    assert "20 = min(1000000, 10 epochs x floor(300 problems / 128) = 20)" in described(short)
    assert "known once the data is loaded" in described()


def test_the_layout_and_the_rounds():
    text = described(
        "cluster.gpus_per_node=8", *layout(tp=2, pp=2)[1:], "thinkprune.truncation=score_cut_text"
    )
    assert "8 ranks = TP 2 x PP 2 x DP 2" in text
    assert "limits 4000 > 3000 > 2000" in text
    assert "scored as it stands" in text
