import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.interpolate import interpolate
from nemo_thinkprune.recipe.load import load_recipe, recipe_from_dict
from nemo_thinkprune.recipe.yaml_file import plain_value

VALUES = {"a": 6, "b.c": 4, "name": "qwen", "f": 0.5, "yes": True, "key": "name"}


def resolve(text):
    return interpolate(text, VALUES.__getitem__, plain_value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${a}", 6), ("${b.c}", 4), ("${f}", 0.5), ("${yes}", True), ("${ a }", 6),
        ("runs/${name}-${a}", "runs/qwen-6"), ("${mul:${a}, ${b.c}}", 24), ("${mul:2,1e3}", 2000.0),
        ("${div:${a},${b.c}}", 1.5), ("${max:${a},${mul:2,5}}", 10), ("${${key}}", "qwen"), ("plain", "plain"),
    ],
)  # fmt: skip
def test_references_and_functions(text, value):
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${a", "closing brace"), ("${}", "not a path"), ("${.a}", "relative"), ("${pow:2,3}", "unknown function"),
        ("${oc.env:HOME}", "environment variables are not read"), ("${mul:1}", "two numbers"),
        ("${mul:1,2,3}", "two numbers"), ("${mul:x,2}", "two numbers"), ("${mul:true,2}", "two numbers"),
        ("${div:1,0}", "division by zero"), ("${" * 99 + "a" + "}" * 99, "nested deeper"),
    ],
)  # fmt: skip
def test_what_cannot_be_resolved_says_why(text, reason):
    with pytest.raises(UserError) as caught:
        resolve(text)
    assert reason in str(caught.value)


def recipe(**sections):
    base = {"policy": {"model_name": "m"}, "data": {"train": {"data_path": "p"}}}
    return recipe_from_dict(base | sections)


def test_references_see_written_default_and_derived_values():
    loaded = recipe(
        logger={"wandb": {"name": "${policy.tokenizer.name}-${grpo.seed}"}},
        grpo={"val_period": "${mul:${grpo.num_generations_per_prompt}, 2}"},
        thinkprune={"limits": [64, 32], "long_limit": "${max:${thinkprune.limits[0]},99}"},
        data={"train": {"data_path": "x/${policy.model_name}"}},
    )
    assert loaded.logger.wandb.name == "m-42"
    assert loaded.grpo.val_period == 32
    assert loaded.thinkprune.long_limit == 99
    assert loaded.data.train[0].data_path == "x/m"


def test_a_whole_section_can_be_referred_to():
    loaded = recipe(data={"train": {"data_path": "p", "split": "s"}, "validation": "${data.train}"})
    assert loaded.data.validation == loaded.data.train


def test_circles_are_named(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "policy: {model_name: m}\ndata: {train: {data_path: p}}\n"
        "grpo: {seed: '${grpo.val_period}', val_period: '${grpo.seed}'}\n"
    )
    with pytest.raises(UserError, match=r"grpo\.seed -> grpo\.val_period -> grpo\.seed.*line 3"):
        load_recipe(file)


def test_a_reference_to_nothing_is_named_once():
    with pytest.raises(UserError) as caught:
        recipe(grpo={"seed": "${grpo.sed}"}, thinkprune={"limits": [8, "${policy.mx}"]})
    assert str(caught.value).count("\n") == 2
    assert "grpo.seed: '${grpo.sed}' names a key that does not exist" in str(caught.value)
    assert "thinkprune.limits.1: '${policy.mx}'" in str(caught.value)
