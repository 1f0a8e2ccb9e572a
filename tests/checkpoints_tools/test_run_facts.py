"""What is read of a run, from records that the real writers made, from damaged ones and from hostile ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pruned_runs import LAST, base_model, fake, pruned_run

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.release.run_facts import RunFacts, base_model_id, find_step, read_run_facts, shown_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("facts")
    return pruned_run(root, base_model(root))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


def test_the_last_checkpoint_of_a_prune_run(finished: Path) -> None:
    facts = read_run_facts(finished / LAST)
    summary = json.loads((finished / "summary.json").read_text())
    assert (facts.step, facts.round, facts.limit, facts.is_control) == (6, 3, 64, False)
    assert facts.base_model == "Lab/Base-1B" and facts.limits == (128, 96, 64)
    assert facts.base_folder is not None and facts.base_folder.name == "0123abcd"
    assert (facts.selection_accuracy, facts.selection_tokens) == (0.96, 50.5)
    results = facts.results
    assert results is not None and results.baseline is not None and results.control is not None
    for stage, written in zip([results.baseline, *results.rounds, results.control],
                              [summary["baseline"], *summary["rounds"], summary["control"]], strict=True):  # fmt: skip
        assert (stage.accuracy, stage.accuracy_se) == (written["accuracy"], written["accuracy_se"])
        assert (stage.tokens, stage.tokens_se) == (written["mean_tokens"], written["mean_tokens_se"])
        assert (stage.tokens_change, stage.accuracy_change) == (
            written["tokens_change"],
            written["accuracy_change"],
        )
    assert [stage.is_this for stage in results.rounds] == [False, False, True]
    assert (results.setting.limit, results.setting.problems) == (240, 12)


def test_the_recipe_is_that_of_the_checkpoint(finished: Path) -> None:
    recipe = read_run_facts(finished / LAST).recipe
    assert recipe is not None
    assert (recipe.truncation, recipe.prompt_family, recipe.length_hint) == ("zero", "qwen", True)
    assert (recipe.prompts, recipe.generations, recipe.max_steps) == (128, 16, 6)
    assert (recipe.max_relative_drop, recipe.estimator, recipe.data) == (0.1, "grpo", ("train.jsonl",))
    assert recipe.lr is not None and recipe.kl_penalty is not None and recipe.clip_min is not None


@pytest.mark.parametrize("inside", ["", "policy", "policy/weights", "policy/weights/iter_0000000"])
def test_any_path_into_the_checkpoint_means_it(finished: Path, inside: str) -> None:
    assert read_run_facts(finished / LAST / inside) == read_run_facts(finished / LAST)


def test_a_round_in_the_middle_leaves_out_the_later_ones(finished: Path) -> None:
    results = read_run_facts(finished / "round_2_L96/checkpoints/step_6").results
    assert results is not None and [stage.round for stage in results.rounds] == [1, 2]
    assert results.this is results.rounds[1]


def test_a_checkpoint_that_was_not_selected_was_not_measured(finished: Path) -> None:
    facts = read_run_facts(finished / "round_2_L96/checkpoints/step_3")
    assert facts.results is not None and facts.results.this is None
    assert [stage.round for stage in facts.results.rounds] == [1] and facts.limits == (128, 96)


def test_a_round_that_kept_its_start_is_a_measurement_of_the_start(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["rounds"][2] |= {"kept_start": True, "checkpoint": summary["rounds"][1]["checkpoint"]}
    (run / "summary.json").write_text(json.dumps(summary))
    results = read_run_facts(run / "round_2_L96/checkpoints/step_6").results
    assert results is not None and [stage.is_this for stage in results.rounds] == [False, True, True]


def test_the_control_is_measured_at_its_last_step(finished: Path) -> None:
    last, earlier = (read_run_facts(finished / "control/checkpoints" / f"step_{n}") for n in (18, 3))
    assert last.is_control and last.limit == 240 and last.limits == () and last.results is not None
    assert last.results.this is last.results.control and last.results.rounds == ()
    assert earlier.results is not None and earlier.results.this is None


def test_a_train_run_has_its_validation(tmp_path: Path) -> None:
    from nemo_thinkprune.reporting.report import write_results

    fake_run = fake("fake_run")
    fake_run.write_train(tmp_path, steps=10)
    (tmp_path / "config.yaml").write_text(fake_run.CONFIG)
    step = tmp_path / "checkpoints" / "step_5"
    step.mkdir(parents=True)
    write_results(tmp_path)
    facts = read_run_facts(step)
    assert facts.results is not None and facts.results.baseline is not None and facts.results.this is not None
    before, after = facts.results.baseline, facts.results.this
    assert (before.tokens, before.accuracy, after.accuracy) == (98.0, 0.95, 0.96)
    assert after.tokens is not None and after.tokens_change == after.tokens / 98.0 - 1
    assert facts.results.setting.limit == 240 and facts.round is None


def test_nemo_rl_leaves_less(tmp_path: Path) -> None:
    step = tmp_path / "results" / "grpo" / "step_40"
    (step / "policy" / "weights" / "iter_0000000").mkdir(parents=True)
    (step / "training_info.json").write_text('{"step": 40, "consumed_samples": 640, "val:accuracy": 0.5}')
    (step / "config.yaml").write_text(
        "policy: {model_name: Qwen/QwQ-32B, generation: {max_new_tokens: 3000}, "
        "megatron_cfg: {optimizer: {lr: 1e-6}}}\ngrpo: {num_prompts_per_step: 64}\n"
    )
    facts = read_run_facts(step)
    assert (facts.step, facts.base_model, facts.limit, facts.limits) == (40, "Qwen/QwQ-32B", 3000, ())
    assert facts.recipe is not None and facts.recipe.lr == 1e-6 and facts.recipe.prompts == 64
    assert facts.results is None


def test_without_a_run_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "iter_0000000").mkdir()
    assert read_run_facts(tmp_path / "iter_0000000") == RunFacts()
    (tmp_path / "step_1").mkdir()
    assert read_run_facts(tmp_path / "step_1") == RunFacts(step=1)


def test_a_step_folder_far_above_is_not_this_checkpoint(tmp_path: Path) -> None:
    inner = tmp_path / "step_3" / "backup" / "iter_0000000"
    inner.mkdir(parents=True)
    assert find_step(inner) is None


def test_another_programs_summary_is_not_ours(run: Path) -> None:
    (run / "summary.json").write_text('{"accuracy": 1.0}')
    assert read_run_facts(run / LAST).results is None


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("Qwen/QwQ-32B",), "Qwen/QwQ-32B"),
        (("/cache/models--Qwen--QwQ-32B/snapshots/1a", "ignored/too"), "Qwen/QwQ-32B"),
        ((None, "org/model"), "org/model"),
        (("/home/me/model", "models/mine"), None),
        (("model",), None),
        (("../model",), None),
        (("./model",), None),
        (("a/b/c",), None),
        (("org/mo\ndel",), None),
        (("org/<script>",), None),
        ((), None),
    ],
)
def test_which_names_are_hub_ids(names: tuple[str | None, ...], found: str | None) -> None:
    assert base_model_id(*names) == found


def test_a_local_path_shows_its_last_part_alone() -> None:
    assert shown_path("/home/someone/secret-project/aime.jsonl") == "aime.jsonl"
    assert shown_path("data/aime24.jsonl") == "aime24.jsonl"
    assert shown_path("org/problems") == "org/problems"


def _edit(**changes: object) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        summary = json.loads((run / "summary.json").read_text())
        summary["baseline"] |= changes
        (run / "summary.json").write_text(json.dumps(summary))

    return apply


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{c}: &{c} {{<<: [{', '.join([f'*{p}'] * 9)}]}}\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda run: (run / "summary.json").write_text('{"schema": 1, "kind": "prune"'),
            "cannot be read as JSON",
        ),
        (lambda run: (run / "summary.json").write_text("[1]"), "must hold an object"),
        (lambda run: (run / "summary.json").write_bytes(b"\xff\xfe"), "not text in UTF-8"),
        (lambda run: (run / "summary.json").write_text("[" * 200_000), "cannot be read as JSON"),
        (lambda run: (run / "summary.json").write_text('{"schema": 2, "kind": "prune"}'), "schema must be 1"),
        (lambda run: os.truncate(run / "summary.json", 1 << 33), "larger than any such file"),
        (_edit(accuracy="97%"), "accuracy must be a number from 0 to 1, not '97%'"),
        (_edit(accuracy=97.1), "accuracy must be a number from 0 to 1"),
        (_edit(accuracy=True), "accuracy must be a number"),
        (_edit(accuracy=float("nan")), "accuracy must be a number"),
        (_edit(mean_tokens=float("inf")), "mean_tokens must be a number"),
        (_edit(mean_tokens=-1), "mean_tokens must be a number"),
        (_edit(label=["x"]), "label must be a text"),
        (_edit(label="x" * 5000), "label must be a text"),
        (
            lambda run: (run / LAST / "training_info.json").write_text('{"limit": 1.5}'),
            "limit must be a whole number",
        ),
        (
            lambda run: (run / LAST / "config.yaml").write_text("a: !!python/object/apply:os.system [id]"),
            "as YAML",
        ),
        (lambda run: (run / LAST / "config.yaml").write_text("{" * 5000), "cannot be read as YAML"),
        (lambda run: (run / LAST / "config.yaml").write_text(MERGES), "merge key"),
        (lambda run: (run / LAST / "config.yaml").write_text(BOMB + "thinkprune: {limits: *i}"), "limits"),
        (lambda run: (run / LAST / "config.yaml").write_text(BOMB + "grpo: {seed: *i}"), "of type list"),
        (
            lambda run: (run / LAST / "config.yaml").write_text("a: &a [*a]\nthinkprune: {limits: *a}"),
            "limits",
        ),
        (
            lambda run: (run / LAST / "config.yaml").write_text("grpo: {seed: 0x" + "f" * 9000 + "}"),
            "seed must be",
        ),
    ],
)
def test_what_is_there_and_wrong_is_an_error(run: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(run)
    with pytest.raises(CheckpointError) as caught:
        read_run_facts(run / LAST)
    assert said in str(caught.value) and len(str(caught.value)) < 800


def test_a_pipe_in_the_place_of_a_file_does_not_hang(run: Path) -> None:
    (run / LAST / "config.yaml").unlink()
    os.mkfifo(run / LAST / "config.yaml")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_run_facts(run / LAST)


def test_numbers_that_are_not_there_are_not_measured(run: Path) -> None:
    _edit(accuracy=None, accuracy_se=None)(run)
    results = read_run_facts(run / LAST).results
    assert results is not None and results.baseline is not None and results.baseline.accuracy is None
