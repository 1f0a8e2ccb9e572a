"""A worker entry that dies, stops or runs out of disk at a chosen phase, as job.run_dir/death.json says."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

ENTRY = "support.killing:run"


def run(job: Any, context: Any) -> None:
    """Run the job with a `beat` that carries out the sentence once."""
    from nemo_thinkprune.training.entry import run as real

    sentence = job.run_dir / "death.json"
    if sentence.exists():
        death = json.loads(sentence.read_text())
        original = context.beat

        def beat(phase: str, step: int, **event: Any) -> None:
            original(phase, step, **event)
            if (phase, step, context.rank) == (death["phase"], death["step"], death["rank"]):
                sentence.unlink(missing_ok=True)
                os.kill(os.getpid(), signal.Signals[death["signal"]])

        context.beat = beat
    real(job, context)
