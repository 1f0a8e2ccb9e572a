"""The Ray cluster of a run leaves the process its own signal handlers."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("ray")

ASKED_TO_STOP = """
import os, signal
from nemo_thinkprune.cluster.ray_cluster import ray_cluster

for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: print("heard", number, flush=True))
with ray_cluster(on_cpu=True, ranks=1):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
print("alive", flush=True)
"""


def test_sigterm_does_not_end_a_process_that_has_joined_ray():
    ended = subprocess.run(
        [sys.executable, "-c", ASKED_TO_STOP],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    said = [line for line in ended.stdout.splitlines() if line.startswith(("heard", "alive"))]
    assert sorted(said) == ["alive", "heard 10", "heard 15"]
