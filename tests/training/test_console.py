from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_thinkprune.training.console import display, job_title, row_text, run_with_progress
from nemo_thinkprune.training.job import EvalSpec, Job
from nemo_thinkprune.training.supervisor import Event

ROW = {
    "reward_mean": 0.53125,
    "accuracy": 0.9,
    "response_tokens_mean": 88.25,
    "truncated_share": 0.03125,
    "kl": 0.1,
    "timing": {"step_s": 1.25},
}


class Sink(io.TextIOWrapper):
    def __init__(self, *, tty: bool, encoding: str = "utf-8") -> None:
        self.bytes = io.BytesIO()
        self.tty = tty
        super().__init__(self.bytes, encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return self.tty

    @property
    def text(self) -> str:
        return self.bytes.getvalue().decode(self.encoding)


def show(screen: Any) -> None:
    with display("train L=128", stream=screen) as shown:
        shown.on_event(Event(rank=0, phase="start", step=2, total=40))
        shown.on_event(Event(rank=1, phase="step", step=3, row=ROW, total=40))
        shown.on_event(Event(rank=0, phase="generate", step=3))
        shown.on_event(Event(rank=0, phase="step", step=3, row=ROW, total=40))
        shown.on_event(Event(rank=0, phase="resume", step=0, extra={"note": "step_9 … refused"}))
        shown.on_event(Event(rank=0, phase="done", step=40, total=40, extra={"produced": "runs/a"}))
        shown.finish(["", "next: thinkprune eval runs/a"])


def test_a_row_names_what_it_has() -> None:
    assert row_text(3, 40, ROW) == "step 3/40  reward 0.531  accuracy 0.900  tokens 88.2  cut 3.1%  1.2 s"
    assert row_text(3, None, {"loss": 0.5, "timing": {}}) == "step 3  loss 0.5000"


def test_plain_lines_where_nobody_watches() -> None:
    screen = Sink(tty=False)
    show(screen)
    lines = screen.text.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d  train L=128  ", line) for line in lines[:3])
    assert [re.sub(r"^[\d:]+  train L=128  ", "", line) for line in lines] == [
        row_text(3, 40, ROW),
        "step_9 … refused",
        "wrote runs/a",
        "",
        "next: thinkprune eval runs/a",
    ]
    assert "\x1b" not in screen.text


def test_rows_stay_above_the_bar_on_a_terminal() -> None:
    screen = Sink(tty=True)
    show(screen)
    assert row_text(3, 40, ROW) in screen.text
    bare = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.text)
    assert re.search(r"train L=128: done \S+ +40/40", bare)


def test_a_terminal_that_cannot_show_every_character_shows_the_rest() -> None:
    for tty in (False, True):
        screen = Sink(tty=tty, encoding="ascii")
        show(screen)
        assert "step_9 ? refused" in screen.text


def test_a_terminal_that_goes_away_does_not_end_the_run() -> None:
    class Broken(Sink):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for tty in (False, True):
        show(Broken(tty=tty))


def test_a_validation_has_its_own_line() -> None:
    screen = Sink(tty=False)
    with display("t", stream=screen) as shown:
        measured = {"accuracy": 0.95, "mean_tokens": 60.0, "share_cut": 0.5}
        shown.on_event(Event(rank=0, phase="validated", step=20, extra={"validation": measured}))
    assert screen.text.endswith("t  validation at step 20  accuracy 0.950  tokens 60.0  cut 50.0%\n")


def test_titles_tell_jobs_apart(make_job: Callable[..., Job]) -> None:
    spec = EvalSpec(
        data_path="data/test.jsonl",
        limit=64,
        samples=1,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
        out=Path("o"),
    )
    jobs = [make_job(), make_job(kind="warmup"), make_job(kind="eval", eval=spec)]
    assert [job_title(job) for job in jobs] == ["train L=8", "warmup", "eval test L=64"]


def test_a_job_is_shown_while_it_runs(
    make_job: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(job: Job, *, on_event: Callable[[Event], None]) -> None:
        on_event(Event(rank=0, phase="step", step=1, row=ROW))

    run_with_progress(make_job(), run=run)
    assert capsys.readouterr().out.endswith(f"train L=8  {row_text(1, None, ROW)}\n")


def test_of_quick_steps_not_every_one_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.4, 0.8, 1.2, 1.3])
    monkeypatch.setattr("nemo_thinkprune.training.console.time.monotonic", lambda: next(clock))
    screen = Sink(tty=False)
    with display("warmup", stream=screen) as shown:
        for step in range(1, 6):
            shown.on_event(Event(rank=0, phase="warmup", step=step, total=5, row={"loss": 0.5}))
    shown_steps = [int(found) for found in re.findall(r"step (\d)/5", screen.text)]
    assert shown_steps == [1, 4, 5]  # the first, one a second, and the last
