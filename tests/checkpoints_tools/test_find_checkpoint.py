"""What a user may call a checkpoint, and where its model's files are."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.folders import find_checkpoint


def iteration(folder: Path, *, complete: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(b"")
    (folder / "__0_0.distcp").write_bytes(b"")
    if complete:
        (folder / "metadata.json").write_text(
            '{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'
        )
    return folder


def config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_step_of_nemo_rl_by_any_of_its_folders(tmp_path: Path) -> None:
    step = tmp_path / "step_3"
    weights = iteration(step / "policy/weights/iter_0000000")
    files = config(step / "policy/tokenizer")
    (step / "policy/weights/latest_checkpointed_iteration.txt").write_text("0")
    for path in (step, step / "policy", step / "policy/weights", weights):
        found = find_checkpoint(path)
        assert (found.iteration, found.root, found.files) == (weights, step, files)


def test_without_tracker_the_only_iteration_is_taken(tmp_path: Path) -> None:
    step = tmp_path / "step_3"
    weights = iteration(step / "policy/weights/iter_0000000")
    assert find_checkpoint(step).iteration == weights
    iteration(step / "policy/weights/iter_0000009")
    with pytest.raises(CheckpointError, match="iter_0000000, iter_0000009: give one of them"):
        find_checkpoint(step)


@pytest.mark.parametrize(("latest", "name"), [("7\n", "iter_0000007"), ("release", "release")])
def test_the_tracker_file_names_the_iteration(tmp_path: Path, latest: str, name: str) -> None:
    iteration(tmp_path / "iter_0000003")
    weights = iteration(tmp_path / name)
    files = config(weights / "tokenizer")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(latest)
    for path in (tmp_path, weights):
        found = find_checkpoint(path)
        assert (found.iteration, found.root, found.files) == (weights, tmp_path, files)


@pytest.mark.parametrize("latest", ["../../etc", "", "-1", "12345678901", "9" * 70])
def test_a_tracker_file_that_names_no_iteration(tmp_path: Path, latest: str) -> None:
    iteration(tmp_path / "iter_0000003")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(latest)
    with pytest.raises(CheckpointError, match=r"latest_checkpointed_iteration\.txt"):
        find_checkpoint(tmp_path)


def test_a_tracked_iteration_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    with pytest.raises(CheckpointError, match="iter_0000004 is missing"):
        find_checkpoint(tmp_path)


def test_an_iteration_alone(tmp_path: Path) -> None:
    weights = iteration(tmp_path / "anything")
    found = find_checkpoint(weights)
    assert (found.iteration, found.root, found.files) == (weights, weights, None)
    config(weights)
    assert find_checkpoint(weights).files == weights


def test_an_incomplete_one_is_refused(tmp_path: Path) -> None:
    weights = iteration(tmp_path / "step_1/policy/weights/iter_0000000", complete=False)
    with pytest.raises(CheckpointError, match=r"metadata\.json, which Megatron writes last, is missing"):
        find_checkpoint(tmp_path / "step_1")
    assert find_checkpoint(tmp_path / "step_1", complete=False).iteration == weights


@pytest.mark.parametrize("name", ["tmp_step_4", "old_step_4", "gone_step_4", "out.partial"])
def test_an_unfinished_one_is_refused(tmp_path: Path, name: str) -> None:
    weights = iteration(tmp_path / name / "policy/weights/iter_0000000")
    for path in (tmp_path / name, weights):
        with pytest.raises(CheckpointError, match=f"{name} is unfinished"):
            find_checkpoint(path)
    assert find_checkpoint(weights, complete=False).iteration == weights


def test_other_formats_are_named(tmp_path: Path) -> None:
    weights = iteration(tmp_path / "a")
    (weights / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(CheckpointError, match="format 'zarr'"):
        find_checkpoint(weights)
    (weights / "metadata.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"metadata\.json"):
        find_checkpoint(weights)
    (tmp_path / "b/mp_rank_00").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="old format"):
        find_checkpoint(tmp_path / "b")


def test_what_was_looked_for_is_listed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"looked for \.metadata, policy/weights, latest_.*iter_\*"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not a folder"):
        find_checkpoint(tmp_path / "file")
    for n in (2, 10):
        iteration(tmp_path / f"step_{n}/policy/weights/iter_0000000")
    with pytest.raises(CheckpointError, match=r"for example .*step_10"):
        find_checkpoint(tmp_path)


def test_the_recipe_names_the_model(tmp_path: Path) -> None:
    step, base = tmp_path / "step_1", config(tmp_path / "base")
    iteration(step / "policy/weights/iter_0000000")
    (step / "config.yaml").write_text("policy: {model_name: Qwen/QwQ-32B}\n")
    found = find_checkpoint(step)
    assert (found.files, found.model_name) == (None, "Qwen/QwQ-32B")
    (step / "config.yaml").write_text(f"policy: {{model_name: {base}}}\n")
    assert find_checkpoint(step).files == base
    (step / "config.yaml").write_text("policy: 3\n")
    assert find_checkpoint(step).files is None
