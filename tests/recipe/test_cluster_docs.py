"""The commands of docs/cluster.md are ones that the program takes, and what it shows is what is printed."""

import re
import shlex

import pytest

from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.describe import describe_check
from nemo_thinkprune.recipe.load import load_recipe, recipes_folder

TEXT = (recipes_folder().parent / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, flags=re.S)
STARTED = re.compile(
    r"thinkprune (?:train|prune) ([a-z0-9.-]+) --engine nemo-rl([^\n\"]*(?:\"[^\"]*\"[^\n\"]*)*)"
)


def commands() -> list[list[str]]:
    """The words after `thinkprune VERB` of each command that starts NeMo-RL."""
    joined = [block.replace("\\\n", " ") for block in BLOCKS]
    return [shlex.split(f"{name} {rest}") for block in joined for name, rest in STARTED.findall(block)]


def test_all_commands_are_found():
    on_cpu = [words for words in commands() if "--on-cpu" in words]
    assert len(commands()) == 4  # tests/launch/test_launch_docs.py has those of jobs
    assert len(on_cpu) == 3


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_a_command_names_a_recipe_and_keys_that_are_accepted(words):
    settings = [word for word in words[1:] if "=" in word and not word.startswith("policy.model_name=")]
    check_recipe(load_recipe(words[0], settings), engine="nemo-rl", on_cpu="--on-cpu" in words)


def test_the_shown_check_is_real():
    [shown] = [block for block in BLOCKS if block.startswith("$ thinkprune check ")]
    command, *pieces = re.split(r"\n\.\.\.\n|(?<=nemo-rl)\n\.\.\.", shown.removesuffix("\n"))
    words = shlex.split(command.removeprefix("$ thinkprune check "))
    printed = describe_check(load_recipe(words[0]), engine="nemo-rl")
    assert len(pieces) == 2
    assert all(piece.strip("\n") in printed for piece in pieces)
