import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import load_recipe

GOOD = "policy: {model_name: m}\ndata: {train: {data_path: p}}\n"


def problems(tmp_path, text, overrides=()):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "r.yaml", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "path", "advice"),
    [
        ("grpo: {num_prompts: 1}", "grpo.num_prompts", "did you mean 'grpo.num_prompts_per_step'?"),
        ("polcy: {}", "polcy", "did you mean 'policy'?"),
        ("megatron_cfg: {}", "megatron_cfg", "belongs at 'policy.megatron_cfg'"),
        ("grpo: {max_new_tokens: 5}", "grpo.max_new_tokens", "belongs at 'policy.generation.max_new_tokens'"),
        ("grpo: {limits: [5]}", "grpo.limits", "belongs at 'thinkprune.limits'"),
        ("loss_fn: {lr: 1.0}", "loss_fn.lr", "'policy.megatron_cfg.optimizer.lr' or 'thinkprune.warmup.lr'"),
        (
            "grpo: {reward_shaping: {overlong_buffer_lenght: 1}}",
            "grpo.reward_shaping.overlong_buffer_lenght",
            "did you mean 'grpo.reward_shaping.overlong_buffer_length'?",
        ),
        ("cluster: {enabledd: true}", "cluster.enabledd", "unknown key"),
        (
            "loss_fn: {tensor_model_parallel: 2}",
            "loss_fn.tensor_model_parallel",
            "tensor_model_parallel_size'",
        ),
        ("cluster: {zzz: 1}", "cluster.zzz", "section 'cluster' has gpus_per_node, num_nodes"),
        ("env: {math: {num_worker: 1}}", "env.math.num_worker", "did you mean 'env.math.num_workers'?"),
    ],
)
def test_unknown_keys_name_the_nearest_valid_one(tmp_path, text, path, advice):
    message = problems(tmp_path, GOOD + text)
    assert f"  {path}: unknown key" in message
    assert advice in message
    assert "r.yaml, line 3)" in message


def test_unknown_keys_in_data_sets_of_either_form(tmp_path):
    one = problems(tmp_path, "policy: {model_name: m}\ndata: {train: {data_path: p, splitt: x}}")
    assert "data.train.splitt: unknown key; did you mean 'data.train.split'?" in one
    many = problems(tmp_path, "policy: {model_name: m}\ndata: {train: [{data_path: p, splitt: x}]}")
    assert "data.train.0.splitt: unknown key; did you mean 'data.train.0.split'?" in many


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grpo: {seed: '7'}", "grpo.seed: expected a whole number, got '7'"),
        ("grpo: {seed: 1.5}", "grpo.seed: expected a whole number, got 1.5"),
        ("grpo: {seed: true}", "grpo.seed: expected a whole number, got true"),
        ("grpo: {seed: null}", "grpo.seed: expected a whole number, got null"),
        ("grpo: {seed: -1}", "grpo.seed: expected a number not below 0, got -1"),
        ("grpo: {val_at_start: yes}", "grpo.val_at_start: expected true or false, got 'yes'"),
        ("grpo: 3", "grpo: expected a section of keys and values, got 3"),
        ("loss_fn: {ratio_clip_min: .inf}", "loss_fn.ratio_clip_min: expected a finite number, got inf"),
        ("thinkprune: {limits: []}", "thinkprune.limits: expected at least 1 entry, got []"),
        ("thinkprune: {limits: [4, x]}", "thinkprune.limits.1: expected a whole number, got 'x'"),
        (
            "thinkprune: {truncation: cut}",
            "thinkprune.truncation: expected one of 'zero' or 'score_cut_text', got 'cut'",
        ),
    ],
)
def test_wrong_types_name_path_value_and_expectation(tmp_path, text, expected):
    assert expected in problems(tmp_path, GOOD + text)


def test_all_mistakes_come_in_one_message(tmp_path):
    message = problems(
        tmp_path, GOOD + "grpo: {sed: 1, val_period: x}\nlogger: {log_dirr: a}\n", ["loss_fn.x=1"]
    )
    assert "r.yaml has 4 problems:\n" in message
    for path in ("grpo.sed", "grpo.val_period", "logger.log_dirr", "loss_fn.x"):
        assert f"\n  {path}: " in message
    assert "(override loss_fn.x=1)" in message


def test_a_derived_value_is_not_blamed_for_its_source(tmp_path):
    message = problems(
        tmp_path, "policy: {model_name: m, train_micro_batch_size: x}\ndata: {train: {data_path: p}}"
    )
    assert "has a problem:" in message
    assert "policy.train_micro_batch_size: expected a whole number" in message


def test_required_keys(tmp_path):
    message = problems(tmp_path, "grpo: {seed: 1}")
    assert "policy.model_name: required, but not given" in message
    assert "data.train: required, but not given" in message
    assert "tokenizer" not in message


def test_duplicate_keys_are_an_error(tmp_path):
    message = problems(tmp_path, GOOD + "grpo:\n  seed: 1\n  seed: 2\n")
    assert "'grpo.seed' is given twice (first in line 4)" in message
    assert "line 5)" in message


@pytest.mark.parametrize("text", ["- a\n", "a: ]\n", "a: !!python/object:os.system {}\n", "a: &x [*x]\n"])
def test_what_is_not_a_recipe_is_refused_with_its_line(tmp_path, text):
    assert "r.yaml, line 1" in problems(tmp_path, text)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="no recipe file"):
        load_recipe(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="directory"):
        load_recipe(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(tmp_path / "b.yaml")


def test_a_misspelt_name_of_a_shipped_recipe():
    with pytest.raises(UserError, match=r"did you mean 'quickstart'"):
        load_recipe("quikstart")


# inheritance


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_defaults_merge_and_the_later_file_wins(tmp_path):
    (tmp_path / "sub").mkdir()
    write(
        tmp_path,
        a=GOOD + "grpo: {seed: 1, val_period: 1}\n",
        b="grpo: {seed: 2}\n",
    )
    write(tmp_path / "sub", c="defaults: [../a.yaml, ../b.yaml]\ngrpo: {num_prompts_per_step: 3}\n")
    grpo = load_recipe(tmp_path / "sub" / "c.yaml").grpo
    assert (grpo.seed, grpo.val_period, grpo.num_prompts_per_step) == (2, 1, 3)


def test_lists_and_marked_sections_are_replaced_not_merged(tmp_path):
    write(
        tmp_path,
        a=GOOD + "thinkprune: {limits: [9, 8]}\nloss_fn: {ratio_clip_min: 0.1, ratio_clip_max: 0.3}\n",
        b="defaults: a.yaml\nthinkprune: {limits: [7]}\nloss_fn: {_override_: true, ratio_clip_min: 0.4}\n",
    )
    recipe = load_recipe(tmp_path / "b.yaml")
    assert recipe.thinkprune.limits == [7]
    assert (recipe.loss_fn.ratio_clip_min, recipe.loss_fn.ratio_clip_max) == (0.4, 0.2)


def test_a_mistake_is_reported_where_it_was_written(tmp_path):
    write(tmp_path, a=GOOD + "grpo: {seed: x}\n", b="defaults: a.yaml\nlogger: {q: 1}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "b.yaml")
    assert "a.yaml, line 3)" in str(caught.value)
    assert "b.yaml, line 2)" in str(caught.value)


def test_circles_and_missing_parents(tmp_path):
    write(
        tmp_path,
        a="defaults: b.yaml\n",
        b="defaults: [a.yaml]\n",
        c="\ndefaults: gone.yaml\n",
        d="defaults: {a: 1}\n",
    )
    with pytest.raises(UserError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_recipe(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"gone\.yaml: No such file.*named in .*c\.yaml, line 2"):
        load_recipe(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="defaults must be"):
        load_recipe(tmp_path / "d.yaml")
