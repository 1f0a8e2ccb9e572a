"""What docs/recipes.md shows is what the program prints."""

import re
import shlex

import pytest

from nemo_thinkprune.recipe.describe import describe_check
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.keys import dotted, walk
from nemo_thinkprune.recipe.load import load_recipe, recipes_folder
from nemo_thinkprune.recipe.schema import Recipe

TEXT = (recipes_folder().parent / "docs" / "recipes.md").read_text(encoding="utf-8")

FILES = {
    "my.yaml": """\
defaults: thinkprune.yaml
grpo:
  num_prompts: 64
  lr: 3e-7
policy:
  tensor_model_parallel_size: 2
  train_micro_batch_size: four
""",
    "my2.yaml": """\
defaults: thinkprune.yaml
grpo: {overlong_filtering: true, max_val_samples: 60}
policy:
  generation: {top_p: 0.95}
  megatron_cfg: {tensor_model_parallel_size: 3, context_parallel_size: 2}
cluster: {gpus_per_node: 8}
""",
}


@pytest.mark.parametrize("command", ["my.yaml grpo.sed=1", "my2.yaml", "thinkprune"])
def test_shown_output_is_real(tmp_path, monkeypatch, command):
    (tmp_path / "thinkprune.yaml").write_text((recipes_folder() / "thinkprune.yaml").read_text())
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    recipe, *overrides = shlex.split(command)
    try:
        printed = describe_check(load_recipe(recipe, overrides))
    except UserError as error:
        printed = f"error: {error}"
    assert f"$ thinkprune check {command}\n{printed}\n```" in TEXT


def test_every_key_that_is_named_exists():
    known = {dotted(path) for path, _ in walk(Recipe)}
    known |= {name.partition(".")[0] for name in known}
    text = re.sub(r"```.*?```", "", TEXT, flags=re.S)
    named = set(re.findall(r"`((?:grpo|loss_fn|policy|data|checkpointing|cluster)\.[a-z_.]+)`", text))
    assert len(named) > 20
    assert named - known == set()


def test_all_shipped_recipes_and_all_thinkprune_keys_are_listed():
    for file in recipes_folder().glob("*.yaml"):
        assert f"| `{file.stem}` |" in TEXT
    section = TEXT.partition("## Section `thinkprune`")[2].partition("\n## ")[0]
    for path, _ in walk(Recipe):
        if path[0] == "thinkprune" and len(path) == 2:
            assert f"`{path[1]}" in section, path
