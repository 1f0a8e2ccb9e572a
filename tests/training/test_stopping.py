from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from nemo_thinkprune.training.accelerators import gpus_visible
from nemo_thinkprune.training.stopping import STOP_SIGNALS, stop_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_all_events_around_it_and_handlers_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with stop_signals() as outer:
        with stop_signals() as first:
            assert not first.is_set()
            os.kill(os.getpid(), number)
            assert first.is_set()
        assert outer.is_set()
        with stop_signals() as second:
            assert second.is_set()
    assert signal.getsignal(number) is before
    with stop_signals() as later:
        assert not later.is_set()


def test_another_thread_leaves_the_handlers_alone() -> None:
    seen: list[bool] = []

    def listen() -> None:
        with stop_signals() as stop:
            seen.append(stop.is_set())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [False] and signal.getsignal(signal.SIGTERM) is before


def test_gpus_are_found_by_their_device_files_unless_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    assert not gpus_visible(tmp_path)
    (tmp_path / "nvidia3").touch()
    assert gpus_visible(tmp_path)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not gpus_visible(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert gpus_visible(tmp_path)
