"""Find the torch_dist weights in what a user calls a checkpoint, and the files that describe its model.

Layouts: NeMo-RL's and the local engine's `step_N/policy/weights/iter_0000000`, with `policy/tokenizer` and
`config.yaml`; Megatron's root with `latest_checkpointed_iteration.txt` and `iter_*` or `release`, with
Megatron-Bridge's `tokenizer` in it; one such folder alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.small_files import read_json, read_text, read_yaml
from checkpoints_tools.torch_dist.write import CONFIG_FILE, METADATA_FILE, TRACKER_FILE

WEIGHTS_FOLDER = Path("policy", "weights")
RUN_TOKENIZER_FOLDER = Path("policy", "tokenizer")  # of NeMo-RL and the local engine, in step_N
TOKENIZER_FOLDER = "tokenizer"  # of Megatron-Bridge, in the iteration's folder or beside it

_UNFINISHED = re.compile(r"(tmp|old|gone)_step_\d+|.*\.partial")
_ITERATION = re.compile(r"iter_\d{1,9}|release")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """Where the parts of a checkpoint lie.

    `iteration` holds `.metadata` and the data files. `root` is the checkpoint as a whole: `step_N`, the folder
    with the tracker file, or `iteration`. `files` has config.json and the tokenizer; None when no such folder is
    known. `model_name` is policy.model_name of a run's config.yaml: a folder or a hub id.
    """

    iteration: Path
    root: Path
    files: Path | None
    model_name: str | None = None

    @property
    def places(self) -> tuple[Path, ...]:
        """Where config.json is looked for in the checkpoint."""
        inside = (
            self.root / RUN_TOKENIZER_FOLDER,
            self.iteration / TOKENIZER_FOLDER,
            self.root / TOKENIZER_FOLDER,
        )
        return tuple(dict.fromkeys((*inside, self.root, self.iteration)))


def find_checkpoint(path: Path, *, complete: bool = True) -> CheckpointFolder:
    """The torch_dist checkpoint that `path` means.

    `path`: `step_N` of NeMo-RL or of the local engine, its `policy` or `policy/weights`, an `iter_*` folder, or a
    folder with the tracker file. With `complete` one whose metadata.json is missing is refused.

    Raises:
        CheckpointError: There is none, or it is unfinished or of another format; the message says what was
            looked for.
    """
    given = path.expanduser()
    if not given.is_dir():
        raise CheckpointError(f"{given} {'is not a folder' if given.exists() else 'does not exist'}")
    real = given.resolve()
    unfinished = next((p for p in (real, *list(real.parents)[:3]) if _UNFINISHED.fullmatch(p.name)), None)
    if unfinished is not None and complete:
        raise CheckpointError(
            f"{unfinished} is unfinished, as its name says: it was being written or deleted when that was "
            "interrupted; take another checkpoint, or run what wrote it again"
        )
    iteration = _iteration(given)
    _check_backend(iteration, complete=complete)
    found = CheckpointFolder(iteration, _root(given, iteration), None, None)
    files = next((p for p in found.places if (p / "config.json").is_file()), None)
    name = _model_name(found.root / "config.yaml")
    if files is None and name is not None:
        files = _with_config(name)
    return CheckpointFolder(iteration, found.root, files, name)


def _iteration(path: Path) -> Path:
    if (path / METADATA_FILE).exists() or (path / CONFIG_FILE).exists() or any(path.glob("__*_*.distcp")):
        return path
    for inner in (WEIGHTS_FOLDER, Path("weights")):
        if (path / inner).is_dir():
            return _iteration(path / inner)
    latest = read_text(path / TRACKER_FILE, max_bytes=64)
    if latest is not None:
        return _tracked(path, latest.strip())
    iterations = sorted(p.name for p in path.iterdir() if p.is_dir() and _ITERATION.fullmatch(p.name))
    if len(iterations) == 1:
        return path / iterations[0]
    if iterations:
        raise CheckpointError(
            f"{path} has no {TRACKER_FILE} and holds {', '.join(iterations[:9])}: give one of them"
        )
    raise _nothing(path)


def _tracked(path: Path, latest: str) -> Path:
    name = latest if latest == "release" else f"iter_{latest:0>7}"
    if not _ITERATION.fullmatch(name):
        raise CheckpointError(f"{path / TRACKER_FILE} holds {latest[:40]!r}, which is no iteration")
    if not (path / name).is_dir():
        raise CheckpointError(f"{path / TRACKER_FILE} names iteration {latest}, but {path / name} is missing")
    return path / name


def _nothing(path: Path) -> CheckpointError:
    steps = sorted((p.name for p in path.glob("step_*") if p.is_dir()), key=lambda n: (len(n), n))
    if steps:
        return CheckpointError(
            f"{path} holds several checkpoints: give one of them, for example {path / steps[-1]}"
        )
    if any(path.glob("mp_rank_*")):
        return CheckpointError(
            f"{path} is in Megatron's old format (mp_rank_*), which is not read; save it as torch_dist"
        )
    return CheckpointError(
        f"{path} holds no model: looked for {METADATA_FILE}, {WEIGHTS_FOLDER}, {TRACKER_FILE}, an iter_* folder, and "
        "for model.safetensors or its index of a Hugging Face model"
    )


def _check_backend(iteration: Path, *, complete: bool) -> None:
    content = read_json(iteration / CONFIG_FILE)
    if content is None:
        if complete:
            raise CheckpointError(
                f"{iteration} is incomplete: {CONFIG_FILE}, which Megatron writes last, is missing; the save was "
                "interrupted, take another checkpoint"
            )
        return
    backend = content.get("sharded_backend")
    if backend != "torch_dist":
        raise CheckpointError(f"{iteration} is in format {str(backend)[:40]!r}; only torch_dist is read")


def _root(given: Path, iteration: Path) -> Path:
    parents = [iteration.resolve(), *iteration.resolve().parents]
    if len(parents) > 3 and iteration.resolve().parent == parents[3] / WEIGHTS_FOLDER:
        return parents[3]
    if given != iteration:
        return given
    return parents[1] if (parents[1] / TRACKER_FILE).is_file() else given


def _with_config(name: str) -> Path | None:
    """The folder of that name, if it is one that has a config.json; it may be anything a run calls a model."""
    folder = Path(os.path.expanduser(name))
    try:
        return folder if (folder / "config.json").is_file() else None
    except OSError:
        return None


def _model_name(config: Path) -> str | None:
    content = read_yaml(config)
    policy = (content or {}).get("policy")
    name = policy.get("model_name") if isinstance(policy, dict) else None
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 1000 else None
