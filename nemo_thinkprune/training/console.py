"""Show a job while it runs: a line for each step, and a bar below them when a person is watching."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from nemo_thinkprune.reporting.trackers import tracked_events
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.supervisor import Event, run_job

Format = Callable[[Any], str]

QUICK_STEP_PERIOD_S = 1.0

# (path in a row of metrics or validation, name on the screen, format); what a row does not have is left out.
COLUMNS: tuple[tuple[tuple[str, ...], str, Format], ...] = (
    (("reward_mean",), "reward", lambda v: f"{v:.3f}"),
    (("accuracy",), "accuracy", lambda v: f"{v:.3f}"),
    (("mean_tokens",), "tokens", lambda v: f"{v:.1f}"),
    (("response_tokens_mean",), "tokens", lambda v: f"{v:.1f}"),
    (("truncated_share",), "cut", lambda v: f"{100 * v:.1f}%"),
    (("share_cut",), "cut", lambda v: f"{100 * v:.1f}%"),
    (("loss",), "loss", lambda v: f"{v:.4f}"),
    (("timing", "step_s"), "", lambda v: f"{v:.1f} s"),
)


class Screen:
    """The part of a text stream that is needed here, with errors that do not reach the run.

    A terminal that is closed, or a reader that leaves, must not end a run that can go on without it; rich
    would even exit the program.  Characters that the encoding does not have become question marks.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = False
        self.encoding = stream.encoding or "ascii"

    def write(self, text: str) -> int:
        """Write what can be written, while somebody reads it."""
        if not self._lost:
            try:
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError):
                self._lost = True
        return len(text)

    def flush(self) -> None:
        """Flush, while somebody reads."""
        if not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._lost = True

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Descriptor, from which the width of a terminal is found."""
        return self._stream.fileno()


class Display:
    """Turns events into text; made by `display`."""

    def __init__(self, title: str, screen: Screen, progress: Progress | None) -> None:
        self._title = title
        self._screen = screen
        self._progress = progress
        self._task: TaskID | None = None
        self._last_row = -math.inf

    def on_event(self, event: Event) -> None:
        """Show one event; only those of rank 0, as all ranks do the same."""
        if event.rank != 0:
            return
        self._move_bar(event)
        if event.row is not None and self._worth_a_line(event):
            self.line(f"{self._title}  {row_text(event.step, event.total, event.row)}")
        if measured := event.extra.get("validation"):
            self.line(f"{self._title}  validation at {row_text(event.step, None, measured)}")
        for key in ("note", "produced"):
            if text := event.extra.get(key):
                self.line(f"{self._title}  {'' if key == 'note' else 'wrote '}{text}")

    def _worth_a_line(self, event: Event) -> bool:
        """Whether a step is shown: always the last one, of quick steps one in `QUICK_STEP_PERIOD_S` seconds."""
        now = time.monotonic()
        if event.step != event.total and now - self._last_row < QUICK_STEP_PERIOD_S:
            return False
        self._last_row = now
        return True

    def line(self, text: str) -> None:
        """Print a line with the time before it."""
        self._print(f"{time.strftime('%H:%M:%S')}  {text}")

    def finish(self, lines: Sequence[str]) -> None:
        """Print the closing lines: what was produced, and the next command."""
        for text in lines:
            self._print(text)

    def _move_bar(self, event: Event) -> None:
        if self._progress is None:
            return
        if self._task is None:
            self._task = self._progress.add_task(event.phase, total=event.total)
        done = event.step if event.row is not None or event.total is not None else None
        self._progress.update(
            self._task, description=f"{self._title}: {event.phase}", completed=done, total=event.total
        )

    def _print(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._screen.write(text + "\n")
            self._screen.flush()


@contextmanager
def display(title: str, *, stream: TextIO | None = None) -> Iterator[Display]:
    """A `Display` on `stream` (default: standard output); `Display.on_event` goes to `run_job`."""
    screen = Screen(sys.stdout if stream is None else stream)
    if not screen.isatty():
        yield Display(title, screen, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=cast(IO[str], screen)), transient=True) as progress:
        yield Display(title, screen, progress)


def run_with_progress(job: Job, *, run: Callable[..., None] = run_job) -> None:
    """Run a job, show it on standard output and mirror it to the recipe's trackers.

    `run` is `supervisor.run_job`, perhaps with some of its arguments given (`functools.partial`).
    """
    tracked = (
        tracked_events(job.recipe, job.run_dir, name=job.run_dir.name)
        if job.engine == "local"
        else nullcontext(lambda event: None)  # NeMo-RL's logger has its own backends
    )
    with display(job_title(job)) as shown, tracked as mirror:

        def on_event(event: Event) -> None:
            shown.on_event(event)
            mirror(event)

        run(job, on_event=on_event)


def job_title(job: Job) -> str:
    """A few words that tell a job from the others of a run: ``train L=128``, ``eval test L=128``, ``warmup``."""
    if job.kind == "eval" and job.eval is not None:
        return f"eval {Path(job.eval.data_path).stem} L={job.eval.limit}"
    return "warmup" if job.kind == "warmup" else f"train L={job.limit}"


def row_text(step: int, total: int | None, row: Mapping[str, Any]) -> str:
    """A metrics row as one line: ``step 3/40  reward 0.531  accuracy 0.912  tokens 88.2  cut 3.1%  1.2 s``."""
    parts = [f"step {step}" + (f"/{total}" if total else "")]
    for path, name, form in COLUMNS:
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            parts.append(f"{name} {form(value)}".strip())
    return "  ".join(parts)
