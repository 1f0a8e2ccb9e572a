import json

import pytest
import yaml
from pydantic import ValidationError

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import dump_yaml, load_recipe, recipe_from_dict, to_dict, with_values
from nemo_thinkprune.recipe.schema import Recipe

SMALL = {"policy": {"model_name": "m"}, "data": {"train": {"data_path": "p.jsonl"}}}


def small(**sections):
    return recipe_from_dict({**SMALL, **sections})


def test_defaults_are_those_of_thinkprune():
    recipe = small()
    assert (recipe.grpo.num_prompts_per_step, recipe.grpo.num_generations_per_prompt) == (128, 16)
    assert recipe.policy.train_global_batch_size == 2048
    assert recipe.policy.megatron_cfg.optimizer.lr == 1e-6
    assert recipe.policy.megatron_cfg.scheduler.lr_decay_style == "constant"
    assert recipe.policy.megatron_cfg.scheduler.lr_warmup_iters == 0
    assert (recipe.loss_fn.reference_policy_kl_penalty, recipe.loss_fn.reference_policy_kl_type) == (
        0.001,
        "k3",
    )
    assert (recipe.loss_fn.ratio_clip_min, recipe.loss_fn.ratio_clip_max) == (0.2, 0.2)
    assert recipe.grpo.adv_estimator.normalize_rewards
    assert not recipe.grpo.adv_estimator.use_leave_one_out_baseline
    assert recipe.loss_fn.token_level_loss
    assert not recipe.grpo.overlong_filtering
    assert (recipe.grpo.val_period, recipe.checkpointing.save_period) == (20, 20)
    assert recipe.thinkprune.limits == [4000, 3000, 2000]


def test_values_that_follow_others():
    recipe = recipe_from_dict(
        {
            "policy": {
                "model_name": "m",
                "precision": "float32",
                "train_micro_batch_size": 4,
                "max_grad_norm": 0.5,
                "logprob_chunk_size": 512,
                "megatron_cfg": {"tensor_model_parallel_size": 2, "optimizer": {"weight_decay": 0.1}},
            },
            "data": {"train": {"data_path": "p"}, "max_input_seq_length": 100},
            "thinkprune": {"limits": [300, 200]},
        }
    )
    policy, megatron = recipe.policy, recipe.policy.megatron_cfg
    assert policy.tokenizer.name == "m"
    assert policy.generation.max_new_tokens == 300
    assert policy.max_total_sequence_length == 448  # 100 + 300, up to a multiple of 64
    assert policy.generation.vllm_cfg.max_model_len == 448
    assert policy.logprob_batch_size == 4
    assert policy.sequence_packing.train_mb_tokens == 4 * 448
    assert policy.make_sequence_length_divisible_by == 2
    assert megatron.pipeline_dtype == "float32"
    assert megatron.defer_fp32_logits
    assert (megatron.optimizer.bf16, megatron.optimizer.fp16, megatron.optimizer.clip_grad) == (
        False,
        False,
        0.5,
    )
    assert (megatron.scheduler.start_weight_decay, megatron.scheduler.end_weight_decay) == (0.1, 0.1)


def test_a_single_limit_for_training_is_the_only_round():
    recipe = recipe_from_dict({**SMALL, "policy": {"model_name": "m", "generation": {"max_new_tokens": 77}}})
    assert recipe.thinkprune.limits == [77]


@pytest.mark.parametrize("name", ["normalize_rewards", "use_leave_one_out_baseline"])
@pytest.mark.parametrize("value", [True, False])
def test_duplicated_flags_follow_each_other(name, value):
    upper = small(grpo={name: value})
    lower = small(grpo={"adv_estimator": {name: value}})
    assert getattr(upper.grpo, name) is getattr(upper.grpo.adv_estimator, name) is value
    assert getattr(lower.grpo, name) is getattr(lower.grpo.adv_estimator, name) is value


def test_duplicated_settings_cannot_contradict_each_other():
    with pytest.raises(UserError, match="one setting") as caught:
        recipe_from_dict(
            {
                "policy": {
                    "model_name": "m",
                    "max_grad_norm": 1.0,
                    "megatron_cfg": {"optimizer": {"clip_grad": 2.0}},
                    "pretrained_checkpoint": {"path": "a"},
                },
                "data": {"train": {"data_path": "p"}},
                "grpo": {"normalize_rewards": True, "adv_estimator": {"normalize_rewards": False}},
                "checkpointing": {"pretrained_checkpoint": {"path": "b"}},
            }
        )
    for path in (
        "grpo.adv_estimator.normalize_rewards",
        "policy.max_grad_norm",
        "policy.pretrained_checkpoint",
    ):
        assert path in str(caught.value)


def test_either_name_of_the_pretrained_checkpoint_sets_the_one_that_is_read():
    recipe = small(checkpointing={"pretrained_checkpoint": {"path": "a"}})
    assert recipe.policy.pretrained_checkpoint.path == "a"


def test_a_recipe_is_frozen():
    with pytest.raises(ValidationError):
        small().grpo.seed = 1


def test_one_data_set_or_a_list_of_them():
    one, many = small().data.train, recipe_from_dict({**SMALL, "data": {"train": [{"data_path": "p.jsonl"}]}})
    assert one == many.data.train
    assert one[0].data_path == "p.jsonl"


def test_round_trips(tmp_path):
    recipe = small(thinkprune={"warmup": {"data_path": "s"}}, logger={"wandb": {"name": "x"}})
    (tmp_path / "config.yaml").write_text(dump_yaml(recipe))
    assert load_recipe(tmp_path / "config.yaml") == recipe
    assert recipe_from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe
    assert Recipe.model_validate(yaml.safe_load(dump_yaml(recipe))) == recipe


def test_keys_that_nemo_rl_forbids_to_be_null_are_left_out():
    data = to_dict(small())
    assert "name" not in data["logger"]["wandb"]
    assert "env_name" not in data["data"]["train"][0]
    assert data["policy"]["generation"]["top_k"] is None


def test_the_dtensor_key_with_an_underscore_keeps_its_name():
    recipe = recipe_from_dict({**SMALL, "policy": {"model_name": "m", "dtensor_cfg": {"_v2": True}}})
    assert to_dict(recipe)["policy"]["dtensor_cfg"]["_v2"] is True
    with pytest.raises(UserError, match=r"policy\.dtensor_cfg\.v2: unknown key.*_v2"):
        recipe_from_dict({**SMALL, "policy": {"model_name": "m", "dtensor_cfg": {"v2": True}}})


def test_with_values_replaces_and_checks():
    recipe = with_values(small(), {"grpo.seed": 7, "policy.generation.max_new_tokens": 10})
    assert (recipe.grpo.seed, recipe.policy.generation.max_new_tokens) == (7, 10)
    assert recipe.policy.max_total_sequence_length == small().policy.max_total_sequence_length
    with pytest.raises(UserError, match=r"grpo\.sed: unknown key; did you mean 'grpo\.seed'"):
        with_values(small(), {"grpo.sed": 7})
    with pytest.raises(UserError, match="unknown key"):
        with_values(small(), {"grpo.seed.x": 7})


def test_every_key_is_described():
    from nemo_thinkprune.recipe.keys import dotted, walk

    assert [dotted(path) for path, info in walk(Recipe) if not info.description] == []
