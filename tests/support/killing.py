"""A worker entry that dies or stops at a chosen point of a chosen step, as job.run_dir/death.json says.

Points are the phases that a rank reports, and these, which lie inside a phase:

- ``shard``: one weight file is written, of another only the first tensor;
- ``metrics``: responses and ledger of the step are recorded, its metrics are not;
- ``sealed``: the checkpoint has its manifest and not yet its name;
- ``replaced``: a checkpoint that stood under that name is moved away and the new one is not yet there.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENTRY = "support.killing:run"
SENTENCE = "death.json"


def sentence(run_dir: Path, point: str, *, step: int = 2, rank: int = 0, kill: str = "SIGKILL") -> None:
    """Make `rank` send itself the signal `kill` at `point` of `step`; carried out once."""
    run_dir.mkdir(parents=True, exist_ok=True)
    death = {"point": point, "step": step, "rank": rank, "signal": kill}
    (run_dir / SENTENCE).write_text(json.dumps(death))


def run(job: Any, context: Any) -> None:
    """Run the job and carry out the sentence once."""
    from nemo_thinkprune.training.entry import run as real

    path = job.run_dir / SENTENCE
    death = json.loads(path.read_text()) if path.exists() else {"rank": None}
    if death["rank"] == context.rank:

        def die() -> None:
            path.unlink()
            os.kill(os.getpid(), signal.Signals[death["signal"]])

        arm = ARMED.get(death["point"], _at_phase)
        arm(context, death, die)
    real(job, context)


def _at_phase(context: Any, death: dict[str, Any], die: Callable[[], None]) -> None:
    original = context.beat

    def beat(phase: str, step: int, **event: Any) -> None:
        original(phase, step, **event)
        if (phase, step) == (death["point"], death["step"]):
            die()

    context.beat = beat


def _in_a_shard(context: Any, death: dict[str, Any], die: Callable[[], None]) -> None:
    """On a CPU a rank writes its files one after the other: it dies behind the second one's first tensor."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    original = filesystem_async._write_item

    @functools.wraps(original)  # Megatron looks at the signature
    def write_item(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        stream = next(arg for arg in args if hasattr(arg, "fileno"))
        path = Path(stream.name)
        if f"tmp_step_{death['step']}" in path.parts and path.name.endswith("_1.distcp"):
            stream.flush()
            die()
        return result

    filesystem_async._write_item = write_item


def _before_the_metrics(context: Any, death: dict[str, Any], die: Callable[[], None]) -> None:
    from nemo_thinkprune.training import run_folder

    original = run_folder.append_durably

    def append(path: Path, data: bytes) -> None:
        if path.name == "metrics.jsonl" and json.loads(data.splitlines()[0])["step"] == death["step"]:
            die()
        original(path, data)

    run_folder.append_durably = append


def _when_sealed(context: Any, death: dict[str, Any], die: Callable[[], None]) -> None:
    from nemo_thinkprune.training import checkpoint_files

    original = checkpoint_files.seal

    def seal(folder: Path, **options: Any) -> None:
        original(folder, **options)
        if folder.name == f"tmp_step_{death['step']}":
            die()

    checkpoint_files.seal = seal


def _between_the_renames(context: Any, death: dict[str, Any], die: Callable[[], None]) -> None:
    original = os.rename

    def rename(source: Any, target: Any) -> None:
        original(source, target)
        if Path(target).name == f"old_step_{death['step']}":
            die()

    os.rename = rename


ARMED = {
    "shard": _in_a_shard,
    "metrics": _before_the_metrics,
    "sealed": _when_sealed,
    "replaced": _between_the_renames,
}
