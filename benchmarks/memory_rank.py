"""One rank of the local engine doing a step; tells the peak resident memory of every phase as a JSON line.

    python benchmarks/memory_rank.py FOLDER RANK WORLD [KEY=VALUE]...

Run by benchmarks/memory_truth.py, which wrote recipe.yaml and a model into FOLDER.  The kernel's high-water mark of
resident memory (VmHWM of /proc/self/status) is reset before each phase by writing 5 to /proc/self/clear_refs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_thinkprune.data.ledger import Ledger
from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.data.prompts import Prompt
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.rewards.types import Reason, Verdict
from nemo_thinkprune.training import session
from nemo_thinkprune.training.checkpointing import Checkpointer
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.loop import train_step
from nemo_thinkprune.training.objective import Objective
from nemo_thinkprune.training.problems import Plan
from nemo_thinkprune.training.session import Clock, Session, open_session, optimizer_config
from nemo_thinkprune.training.worker import RankContext


class Peaks:
    """Highest resident memory of each phase, in bytes, and what was resident when it ended."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, int]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure the block as phase `name`; of several blocks the highest counts."""
        reset_peak()
        try:
            yield
        finally:
            self.note(name)

    def note(self, name: str) -> None:
        """The peak so far belongs to `name`."""
        status = memory_status()
        if status["VmHWM"] > self.found.get(name, {}).get("VmHWM", 0):
            self.found[name] = status

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` as a measured phase."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return function(*args, **kwargs)

        return measured


def memory_status() -> dict[str, int]:
    """Peak and present resident memory of this process by kind, in bytes (proc(5))."""
    names = ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem")
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in names}


def reset_peak() -> None:
    """Begin a new peak at what is resident now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


class GivenVerdicts:
    """A scorer without processes: half of each group is right."""

    def score(self, items: Any, **_: Any) -> list[Verdict]:
        """The verdicts, and nothing judged."""
        return [
            Verdict(float(i % 2), Reason.CORRECT if i % 2 else Reason.WRONG, None) for i in range(len(items))
        ]

    def close(self) -> None:
        """Nothing was opened."""


def main() -> None:
    """Run two steps and a save; print what was resident."""
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    recipe = load_recipe(folder / "recipe.yaml", sys.argv[4:])
    job = Job(
        kind="train",
        run_dir=folder,
        recipe=recipe,
        model=str(folder / "model"),
        limit=recipe.thinkprune.limits[0],
    )
    silent = os.open(os.devnull, os.O_WRONLY)
    context = RankContext(rank=rank, world=world, rendezvous=folder / "rendezvous", pipe=silent)
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:  # the engine would set another one
        session.keep_freed_memory = lambda: None
    peaks = Peaks()
    with peaks.of("start"):
        warm_imports()
    reset_peak()
    with open_session(job, context, optimizer=optimizer_config(recipe)) as opened:
        peaks.note("load")
        peaks.found["loaded"] = memory_status()
        if opened.scorer is not None:
            opened.scorer.close()
        _steps(replace(opened, scorer=GivenVerdicts()), peaks)  # type: ignore[arg-type]
        (folder / f"rank_{rank}.json").write_text(json.dumps(peaks.found))


def warm_imports() -> None:
    """Import what a session imports late, so that it counts as the program and not as the first phase."""
    import megatron.core.dist_checkpointing  # noqa: F401
    import torch.distributed.checkpoint  # noqa: F401
    import transformers  # noqa: F401


def _steps(session: Session, peaks: Peaks) -> None:
    engine: Any = session.engine
    engine.eos_ids = []  # every response has the greatest length
    policy: Any = session.policy
    objective = Objective.from_recipe(session.recipe)
    if objective.needs_reference:
        policy.freeze_reference()
    engine.generate = peaks.around("generate", engine.generate)
    policy.logprobs = peaks.around("log-probs", policy.logprobs)
    step = policy.optimizer.step

    def stepping(*args: Any, **kwargs: Any) -> Any:
        peaks.note("forward/backward")
        with peaks.of("optimizer"):
            return step(*args, **kwargs)

    policy.optimizer.step = stepping
    update = policy.update

    def updating(*args: Any, **kwargs: Any) -> Any:
        reset_peak()
        return update(*args, **kwargs)

    policy.update = updating
    plan = _plan(session)
    for number in (1, 2):
        train_step(session, plan, objective, number, Clock())
        peaks.found[f"after step {number}"] = memory_status()
    checkpointer = Checkpointer(session)
    checkpointer.folder.mkdir(parents=True, exist_ok=True)
    with peaks.of("save"):
        checkpointer.save(2, validation=None)


def _plan(session: Session) -> Plan:
    """Prompts of the greatest length."""
    recipe = session.recipe
    count, length = recipe.grpo.num_prompts_per_step, recipe.data.max_input_seq_length
    words = [[(7 * p + i) % 50 + 5 for i in range(length)] for p in range(count)]
    prompts = [Prompt(Problem(str(n), "x", "", "given"), ids) for n, ids in enumerate(words)]
    return Plan(prompts, [], Ledger(count, count, 0), 2)


if __name__ == "__main__":
    main()
