import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import repeatable

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.layers import parse_override
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.recipe.yaml_file import parse_value, plain_value

# Inside a list or section ' #' is refused, quoted or not; this is how to write it.
ESCAPED_COMMENT = "\\u0020#"
names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: isinstance(plain_value(name), str)
)
# Beyond the first plane JSON writes two escapes for one character, which YAML reads as two.
texts = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@repeatable(200)
@given(path=st.lists(names, min_size=1, max_size=4), value=values)
def test_any_value_survives_being_written_as_json(path, value):
    parts, parsed = parse_override(f"{'.'.join(path)}={json.dumps(value).replace(' #', ESCAPED_COMMENT)}")
    assert parts == tuple(path)
    assert parsed == value
    assert type(parsed) is type(value)


@repeatable(200)
@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_in_any_notation_are_numbers(number):
    for text in (repr(number), f"{number:e}", f"{number:E}", f"{number:.17g}"):
        assert plain_value(text) == pytest.approx(number, rel=1e-5)
        assert isinstance(plain_value(text), int | float)


@repeatable(200)
@given(text=st.text())
def test_parsing_either_works_or_says_why(text):
    try:
        parse_override(text)
    except UserError as error:
        assert str(error).startswith("override '")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6), ("1E6", 1e6), ("1_000", 1000), ("-3", -3), ("+4", 4), (".5", 0.5), ("5.", 5.0),
        ("true", True), ("False", False), ("yes", "yes"), ("null", None), ("~", None), ("010", 10),
        ("12:30:00", "12:30:00"), ("2026-01-02", "2026-01-02"), ("[1, a, 2e3]", [1, "a", 2000.0]),
        ("{a: 1}", {"a": 1}), ("'5'", "5"), ('"null"', "null"), ("a/b", "a/b"), ("val:accuracy", "val:accuracy"),
    ],
)  # fmt: skip
def test_values_are_yaml_1_2(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.b", "expected KEY=VALUE"), ("=3", "not a path of keys"), ("a..b=3", "not a path of keys"),
        ("+a.b=3", "without '+'"), ("~a=1", "without '~'"), ("a=", "no value"), ("a=[1", "not YAML"),
        ("a={b: 1, b: 2}", "given twice"), ("a=x #y", "quote the value"),
    ],
)  # fmt: skip
def test_malformed_overrides_say_what_to_write(text, reason):
    with pytest.raises(UserError, match="override") as caught:
        parse_override(text)
    assert reason in str(caught.value)


@pytest.fixture
def recipe_file(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("policy: {model_name: m}\ndata: {train: [{data_path: p}]}\nthinkprune: {warmup: null}\n")
    return file


def test_overrides_win_over_the_file_and_the_last_one_wins(recipe_file):
    recipe = load_recipe(
        recipe_file,
        ["grpo.seed=1", "grpo.seed=2", "policy.megatron_cfg.optimizer.lr=3e-4", "thinkprune.limits=[50, 40]",
         "thinkprune.warmup.data_path=s", "data.validation={data_path: v}"],
    )  # fmt: skip
    assert recipe.grpo.seed == 2
    assert recipe.policy.megatron_cfg.optimizer.lr == 3e-4
    assert recipe.policy.generation.max_new_tokens == 50
    assert recipe.thinkprune.warmup.data_path == "s"
    assert recipe.data.validation[0].data_path == "v"


def test_an_override_reaches_what_follows_from_it(recipe_file):
    assert load_recipe(recipe_file, ["policy.train_micro_batch_size=8"]).policy.logprob_batch_size == 8


def test_overrides_are_strict_and_all_are_reported(recipe_file):
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file, ["grpo.sed=1", "nonsense", "data.train.0.split=x", "cluster.num_nodes=two"])
    message = str(caught.value)
    assert "has 4 problems" in message
    assert "grpo.sed: unknown key; did you mean 'grpo.seed'? (override grpo.sed=1)" in message
    assert "override 'nonsense': expected KEY=VALUE" in message
    assert "override 'data.train.0.split=x': data.train is a list: give the whole list" in message
    assert "cluster.num_nodes: expected a whole number, got 'two' (override cluster.num_nodes=two)" in message
