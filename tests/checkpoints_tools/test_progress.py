"""Progress: plain lines where nobody watches, a bar on a terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

from checkpoints_tools.copying.progress import Progress


def test_lines_come_every_few_seconds_with_speed_and_time_left() -> None:
    now, stream = 0.0, io.StringIO()
    with Progress(10_000_000_000, "export", done=2_000_000_000, stream=stream, clock=lambda: now) as bar:
        for _ in range(12):
            now += 1.0
            bar.advance(100_000_000)
    assert stream.getvalue().splitlines() == [
        "export: 2.5 GB of 10 GB (25%), 100 MB/s, 1:15 left",
        "export: 3 GB of 10 GB (30%), 100 MB/s, 1:10 left",
    ]


def test_a_closed_pipe_does_not_end_the_copy() -> None:
    tries = []

    class Closed(io.StringIO):
        def flush(self) -> None:
            tries.append(self.getvalue())
            raise BrokenPipeError

    now = 0.0
    with Progress(1 << 30, "export", stream=Closed(), clock=lambda: now) as bar:
        now = 10.0
        bar.advance(1 << 20)
        assert tries and tries[0].startswith("export: ")


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    script = (
        "import sys; from checkpoints_tools.copying.progress import Progress\n"
        "with Progress(4_000_000, 'export', done=1_000_000) as bar:\n"
        "    bar.advance(3_000_000)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, env=environment)
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 4096):
            text += piece
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert "export" in text.decode() and "4.0/4.0 MB" in text.decode()
