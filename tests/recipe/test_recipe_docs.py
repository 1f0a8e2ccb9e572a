"""What docs/recipes.md shows is what the program prints."""

import re
import shlex

import pytest

from nemo_thinkprune.recipe.checks import check_recipe
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
grpo: {overlong_filtering: true}
policy:
  generation: {top_p: 0.95}
  megatron_cfg: {tensor_model_parallel_size: 3, context_parallel_size: 2}
cluster: {gpus_per_node: 8}
""",
    "my3.yaml": """\
defaults: qwq-32b-4k-4n8g.yaml
policy:
  logprob_batch_size: 4
  train_global_batch_size: 512
  max_total_sequence_length: 5024
  generation: {vllm_cfg: {tensor_parallel_size: 3}}
  tokenizer: {chat_template: qwq.jinja}
thinkprune: {length_reward: {name: arora_zanette}}
""",
}


@pytest.mark.parametrize(
    "command", ["my.yaml grpo.sed=1", "my2.yaml", "my3.yaml --engine nemo-rl", "thinkprune"]
)
def test_shown_output_is_real(tmp_path, monkeypatch, command):
    for name in ("thinkprune.yaml", "qwq-32b-4k-4n8g.yaml"):
        (tmp_path / name).write_text((recipes_folder() / name).read_text())
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    words, _, engine = command.partition(" --engine ")
    recipe, *overrides = shlex.split(words)
    try:
        printed = describe_check(load_recipe(recipe, overrides), engine=engine or "local")
    except UserError as error:
        printed = f"error: {error}"
    assert f"$ thinkprune check {command}\n{printed}\n```" in TEXT


def test_the_shown_layout_is_real():
    printed = describe_check(load_recipe("qwq-32b-4k-8n8g-async"), engine="nemo-rl")
    layout = "layout\n" + printed.partition("\nlayout\n")[2].partition("\nrounds (")[0]
    assert f"$ thinkprune check qwq-32b-4k-8n8g-async --engine nemo-rl\n...\n{layout}\n...\n```" in TEXT


def test_the_example_of_a_key_that_one_engine_cannot_honour():
    [named] = re.findall(r"such as\n`([a-z_.]+)` on the local engine", TEXT)
    loaded = load_recipe("thinkprune", [f"{named}=true"])
    with pytest.raises(UserError, match=f"{named} = True: the local engine cannot honour this"):
        check_recipe(loaded)
    with pytest.raises(UserError) as caught:  # for what it needs besides, not for itself
        check_recipe(loaded, engine="nemo-rl")
    assert f"{named} = True" not in str(caught.value)


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
