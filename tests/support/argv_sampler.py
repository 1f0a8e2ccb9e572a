"""What every process of this machine shows in its command line while something runs, those of containers included."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

PERIOD_S = 0.04


class ArgvSampler:
    """Reads all command lines again and again; `seen` maps each text looked for to those that held it."""

    def __init__(self, texts: Collection[str]) -> None:
        self.seen: dict[str, set[str]] = {text: set() for text in texts}
        self.rounds = 0
        self._wanted = [(text, text.encode()) for text in texts]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self.rounds += 1
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    self._look(Path(entry.path, "cmdline"))

    def _look(self, path: Path) -> None:
        try:
            argv = path.read_bytes()
        except OSError:  # it has ended
            return
        for text, wanted in self._wanted:
            if wanted in argv:
                self.seen[text].add(argv.replace(b"\0", b" ").decode(errors="replace")[:500])


@contextmanager
def sampled_argv(*texts: str) -> Iterator[ArgvSampler]:
    """Look for `texts` until the end of the block."""
    sampler = ArgvSampler(texts)
    sampler._thread.start()
    try:
        yield sampler
    finally:
        sampler._stop.set()
        sampler._thread.join(timeout=30)
