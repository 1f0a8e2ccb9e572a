"""Phases of a step: seconds alone in a run, processor time and memory too under a meter."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from nemo_thinkprune.training.clock import Clock, Meter
from nemo_thinkprune.training.process_tree import processor_seconds

MIB = 2**20
BUSY = "import time\nwhile time.process_time() < {seconds}: pass\nprint(flush=True)\ninput()"


def work_for(seconds: float) -> None:
    """Use the processor for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_clock_without_a_meter_tells_seconds_alone() -> None:
    clock = Clock({"save_s": 1.5})
    for _ in range(2):
        with clock.phase("update_s"):
            pass
    assert clock.seconds["save_s"] == 1.5 and clock.seconds["update_s"] > 0
    assert clock.uses == {} and clock.told() == {}


def test_a_phase_that_fails_is_measured_too() -> None:
    clock = Clock(meter=Meter(torch.device("cpu")))
    with pytest.raises(ZeroDivisionError), clock.phase("outer"), clock.phase("inner"):
        raise ZeroDivisionError
    assert clock.told().keys() == {"outer", "inner"}
    with clock.phase("outer"):
        pass


def test_processor_time_is_that_of_the_phase() -> None:
    clock = Clock(meter=Meter(torch.device("cpu")))
    with clock.phase("outer"):
        with clock.phase("inner"):
            work_for(0.05)
        work_for(0.02)
    with clock.phase("inner"):
        work_for(0.01)
    told = clock.told()
    assert told["inner"]["cpu_s"] >= 0.06
    assert told["outer"]["cpu_s"] >= 0.07
    assert told["outer"]["seconds"] == clock.seconds["outer"]


def test_memory_belongs_to_the_phase_that_held_it() -> None:
    clock = Clock(meter=Meter(torch.device("cpu")))
    with clock.phase("before"):
        pass
    with clock.phase("outer"):
        with clock.phase("inner"):
            block = bytearray(b"x" * (96 * MIB))
            del block
        with clock.phase("small"):
            pass
    told = clock.told()
    base = told["before"]["peak"]
    assert told["inner"]["peak"] > base + 64 * MIB
    assert told["outer"]["peak"] == told["inner"]["peak"]
    assert told["outer"]["own_peak"] < told["inner"]["peak"] - 64 * MIB
    assert told["small"]["peak"] < told["inner"]["peak"] - 64 * MIB


def test_the_time_of_children_counts_while_they_live_and_after() -> None:
    before = processor_seconds()
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(seconds=0.4)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()  # it has used 0.4 s and waits
    alive = processor_seconds()
    child.communicate(b"\n")
    assert alive - before > 0.3  # the kernel counts in ticks
    assert processor_seconds() - before > 0.3
