"""Where a run writes and which checkpoints it keeps."""

import pytest
from support.nemo_rl_recipes import only, problems, recipe

from nemo_thinkprune.recipe.checks import check_recipe

CHECKPOINTS, LOGS = "checkpointing.checkpoint_dir", "logger.log_dir"


@pytest.mark.parametrize("key", [CHECKPOINTS, LOGS])
@pytest.mark.parametrize("value", ["/scratch/x", "../x", "a/../../x", "~/x", ".", "./", '""'])
def test_folders_outside_the_run_folder(key, value):
    message, value = only(f"{key}={value}"), value.strip('"')
    usual = "checkpoints" if key == CHECKPOINTS else "logs"
    assert message == (
        f"  {key} = {value!r} is no folder inside the run folder, where it is looked for; give a name such as "
        f"{usual}, and --run-dir for the place of the run"
    )


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        (CHECKPOINTS, "rollouts", "rollouts"),
        (CHECKPOINTS, "./metrics.jsonl", "metrics.jsonl"),
        (CHECKPOINTS, "logs", "logs"),
        (CHECKPOINTS, "python/x", "python"),
        (LOGS, "rollouts/logs", "rollouts"),
        (LOGS, "eval", "eval"),
    ],
)
def test_folders_that_the_run_has(key, value, name):
    assert f"  {key} = {value!r}: the run folder has a {name} of its own; give another name" in only(
        f"{key}={value}"
    )


def test_checkpoints_and_logs_have_folders_of_their_own():
    assert only(f"{CHECKPOINTS}=out/a", f"{LOGS}=out/b") == (
        f"  {CHECKPOINTS} = 'out/a' and {LOGS} = 'out/b' share a folder; remove one of the keys"
    )
    assert problems(f"{CHECKPOINTS}=out/a", f"{LOGS}=other") == []


def test_the_shortest_responses_are_kept():
    keys = ("checkpointing.metric_name=val:mean_tokens", "checkpointing.keep_top_k=3")
    assert only(*keys) == (
        "  checkpointing.keep_top_k = 3 by val:mean_tokens with higher_is_better true keeps the checkpoints with the "
        "longest responses; set checkpointing.higher_is_better=false"
    )
    assert problems(*keys, "checkpointing.higher_is_better=false") == []
    assert problems(keys[0]) == []
    check_recipe(recipe(*keys, "checkpointing.higher_is_better=false"))
