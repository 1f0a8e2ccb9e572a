"""Keys of loss_fn that need or exclude each other: each message, and what a recipe says it will do."""

import pytest

from nemo_thinkprune.recipe.checks import ENGINES, check_recipe
from nemo_thinkprune.recipe.describe import describe_check
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipe_from_dict

BASE = {
    "policy": {"model_name": "m"},
    "data": {"train": {"data_path": "p"}, "validation": {"data_path": "v"}},
}
GSPO = ("sequence_level_importance_ratios=true", "token_level_loss=false")


def recipe(*keys):
    return recipe_from_dict(BASE, [f"loss_fn.{key}" for key in keys])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("keys", "says", "advises"),
    [
        (GSPO[:1], "sequence_level_importance_ratios needs", "token_level_loss=false"),
        (["use_cispo=true", "token_level_loss=false"], "use_cispo needs", "token_level_loss=true"),
        (["use_cispo=true", "disable_ppo_ratio=true"], "clipped ratios of tokens", "disable_ppo_ratio=false"),
        (["use_cispo=true", "force_on_policy_ratio=true"], "clipped", "force_on_policy_ratio=false"),
        (["use_cispo=true", GSPO[0]], "clipped", "set loss_fn.sequence_level_importance_ratios=false"),
        (["use_cispo=true", "ratio_clip_c=3"], "no dual clip", "ratio_clip_c=null"),
        (["truncated_importance_sampling_ratio=2"], "no effect without", "set tis, icepop or seq-mask-tis"),
        (
            ["truncated_importance_sampling_type=tis", "truncated_importance_sampling_ratio=2"],
            "truncated_importance_sampling_type = tis needs",
            "use_importance_sampling_correction=true",
        ),
    ],
)
def test_contradictions_are_errors_on_both_engines(engine, keys, says, advises):
    with pytest.raises(UserError) as caught:
        check_recipe(recipe(*keys), engine=engine)
    assert says in str(caught.value) and advises in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "keys", "advises"),
    [
        ("tis", [], "needs an upper bound"),
        ("icepop", ["truncated_importance_sampling_ratio=2"], "needs a lower bound"),
        (
            "tis",
            ["truncated_importance_sampling_ratio=2", "truncated_importance_sampling_ratio_min=3"],
            "ratio_min = 3 must not be above",
        ),
        (
            "seq-mask-tis",
            [*GSPO, "truncated_importance_sampling_ratio=2", "truncated_importance_sampling_ratio_min=1"],
            "needs loss_fn.sequence_level_importance_ratios=false",
        ),
    ],
)
def test_bounds_of_the_weights_are_asked_for(kind, keys, advises):
    with pytest.raises(UserError, match=advises.replace("(", r"\(")):
        check_recipe(
            recipe(
                "use_importance_sampling_correction=true", f"truncated_importance_sampling_type={kind}", *keys
            )
        )


def described(*keys):
    return describe_check(recipe(*keys))


def test_what_they_will_do_is_said():
    assert "r = exp(mean over the response of log p - log p_old) (GSPO)" in described(*GSPO)
    assert "-A stop_gradient(clip(r, 0.8, 1.2)) log p, r = p / p_old (CISPO)" in described("use_cispo=true")
    weighted = described("use_importance_sampling_correction=true", "use_on_policy_kl_approximation=true")
    assert "  times p_old / p_sampler\n" in weighted and "    times p / p_sampler\n" in weighted
    bounds = ("truncated_importance_sampling_ratio=2", "truncated_importance_sampling_ratio_min=0.5")
    for kind, effect in [
        ("tis", "clamped to [0.5, 2.0]"),
        ("icepop", "0 outside [0.5, 2.0]"),
        ("seq-mask-tis", "0 where its geometric mean over the response is outside [0.5, 2.0]"),
    ]:
        text = described(
            "use_importance_sampling_correction=true", f"truncated_importance_sampling_type={kind}", *bounds
        )
        assert f"times p_old / p_sampler, {effect}" in text


def test_what_nemo_rl_would_leave_out_or_blow_up_is_an_error_there_only():
    cases = [
        (["loss_fn.positive_example_nll_weight=0.1"], "would silently be left out; set 0"),
        (
            ["grpo.use_leave_one_out_baseline=true", "thinkprune.length_reward.name=l1_max"],
            "divides by a rounding error",
        ),
    ]
    for overrides, says in cases:
        loaded = recipe_from_dict(BASE, overrides)
        check_recipe(loaded)
        with pytest.raises(UserError, match=says):
            check_recipe(loaded, engine="nemo-rl")
    check_recipe(recipe_from_dict(BASE, ["grpo.use_leave_one_out_baseline=true"]), engine="nemo-rl")
