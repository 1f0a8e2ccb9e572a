"""Seconds to score one step of training through NeMo-RL's environment actor, and what a hanging answer costs.

    NEMO_RL_ROOT=CHECKOUT python benchmarks/bench_environment.py [--runs 5] [--workers 2] [--deadline 5]

The 2,048 AIME-like responses of bench_reward.py, made longer by half (to about 4,000 tokens), as NeMo-RL's
`calculate_rewards` hands them over: one Ray call with the conversations and their metadata, rewards back. The
first run of an actor also starts its worker processes.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_reward import responses

from nemo_thinkprune.cluster.find import SHIM, copy_packages, find_nemo_rl, python_path
from nemo_thinkprune.cluster.responses import Response

_HANGING = r"\boxed{\operatorname{ones}(9999,9999)}"


def main() -> None:
    """Prints the size of the work, the seconds of each run and their median."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--deadline", type=float, default=5.0)
    options = arguments.parse_args()
    batches = [_batch(seed) for seed in range(options.runs + 1)]
    characters = sum(len(log[-1]["content"]) for log in batches[0][0]) / len(batches[0][0])
    print(
        f"{len(batches[0][0])} responses of {characters:.0f} characters on average, {options.workers} workers"
    )
    with_nemo_rl()
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR")
    try:
        actor = _actor(options.workers, options.deadline)
        ray.get(actor.step.remote([], []))  # the actor's own start is none of the scoring
        print(f"{_seconds(actor, batches[0]):.3f} s with workers to start")
        warm = [_seconds(actor, batch) for batch in batches[1:]]
        print(f"median {statistics.median(warm):.3f} s (all: {', '.join(f'{s:.3f}' for s in warm)})")
        hanging = (
            Response(f"so {_HANGING}", 9, True),
            {"problem_id": "h", "question": "?", "ground_truth": "x^2"},
        )
        alone = _seconds(actor, ([_log(hanging[0])], [hanging[1]]))
        print(f"{alone:.3f} s for an answer that hangs, deadline {options.deadline} s")
    finally:
        ray.shutdown()


def with_nemo_rl() -> None:
    """Makes NeMo-RL importable here and in the actors."""
    found = find_nemo_rl()
    os.environ["PYTHONPATH"] = python_path(found, copy_packages(Path(tempfile.mkdtemp())))
    if sys.version_info < (3, 12):
        sys.path.insert(0, str(SHIM))
        sys.modules.pop("sitecustomize", None)
        __import__("sitecustomize")
    sys.path.append(str(found.root))


def _actor(workers: int, deadline: float) -> Any:
    from nemo_rl.environments.utils import create_env

    from nemo_thinkprune.cluster.names import ENVIRONMENT
    from nemo_thinkprune.cluster.register import register

    register()
    settings = {"workers": workers, "deadline_s": deadline, "memory_mb": 1024, "truncation": "score_cut_text"}
    return create_env(ENVIRONMENT, settings)


def _batch(seed: int) -> tuple[list[Any], list[dict[str, str]]]:
    items = responses(seed)
    logs = [
        _log(Response(item.response[: len(item.response) // 2] + item.response, 4000, item.finished))
        for item in items
    ]
    known = [
        {"problem_id": str(i), "question": "?", "ground_truth": item.gold} for i, item in enumerate(items)
    ]
    return logs, known


def _log(response: Response) -> list[dict[str, str]]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": response}]


def _seconds(actor: Any, batch: tuple[Sequence[Any], Sequence[Any]]) -> float:
    import ray

    start = time.perf_counter()
    ray.get(actor.step.remote(*batch))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
