"""The picture of docs/launch.md: what runs where and when in an attempt of a job, and what its end leads to.

    python benchmarks/launch_figure.py --out docs/images/launch.svg

Its words are those of events.tsv; lengths mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.reporting import svg

WIDTH, HEIGHT = 840.0, 322.0
LEFT, FIRST_LANE, PITCH, BAR = 118.0, 62.0, 34.0, 22.0
BOTTOM = FIRST_LANE + 4 * PITCH + BAR + 6
START, READY, ASKED, END, AGAIN = 118.0, 232.0, 508.0, 578.0, 690.0
BLUE, ORANGE, GREEN, PURPLE = range(4)


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that runs: on which lane, from where to where, in which colour, with which words inside."""

    lane: int
    start: float
    end: float
    colour: int
    words: str


LANES = ("every node", "first node", "the others", "first node", "first node")
BARS = (
    Bar(0, START, END, GREEN, "private folder, mode 0700, and the step that will remove it"),
    Bar(1, START + 14, END, BLUE, "ray start --head"),
    Bar(2, START + 34, END, BLUE, "ray start --address"),
    Bar(3, READY, END, ORANGE, "thinkprune train, or prune"),
    Bar(4, READY, END, PURPLE, "watchdog: does the run folder still move?"),
    Bar(0, AGAIN, WIDTH - 8, GREEN, "attempt 2"),
    Bar(1, AGAIN + 14, WIDTH - 8, BLUE, "Ray"),
    Bar(2, AGAIN + 34, WIDTH - 8, BLUE, "Ray"),
    Bar(3, AGAIN + 76, WIDTH - 8, ORANGE, "goes on"),
    Bar(4, AGAIN + 76, WIDTH - 8, PURPLE, "watch"),
)
MOMENTS = ((START, "start"), (READY, "ray_ready"), (ASKED, "signal USR1"), (END, "end"), (AGAIN, "start"))
CHECKPOINTS = (398.0, 440.0, 490.0, END - 8)
OUTCOMES = (
    ("finished", "the run is done"),
    ("requeue", "saved, time limit, lost node, Ray, stall, crash: the same job id, from the last checkpoint"),
    ("gave_up", "a user error, or --max-failures attempts in a row without a new checkpoint"),
    ("stopped", "scancel, or thinkprune launch cancel [--save]"),
)


def top(lane: int) -> float:
    """The upper edge of a lane's bars."""
    return FIRST_LANE + lane * PITCH


def bars() -> Iterator[str]:
    """What runs, lane by lane."""
    for lane, where in enumerate(LANES):
        yield svg.text(LEFT - 12, top(lane) + 15, where, anchor="end")
    for bar in BARS:
        yield (
            f'<rect x="{svg.px(bar.start)}" y="{svg.px(top(bar.lane))}" width="{svg.px(bar.end - bar.start)}" '
            f'height="{svg.px(BAR)}" rx="4" fill="var(--c{bar.colour})" opacity="0.2"/>'
        )
        yield svg.text(bar.start + 8, top(bar.lane) + 15, bar.words, css="name")


def moments() -> Iterator[str]:
    """The events that are written down, as lines through all lanes."""
    for x, name in MOMENTS:
        yield svg.text(x, 32, name, anchor="middle", css="name")
        yield svg.line(x, 38, x, top(0), css="mark")
        for lane in range(len(LANES)):  # behind no bar, whose words it would cross
            covered = any(bar.lane == lane and bar.start <= x <= bar.end for bar in BARS)
            below = top(lane + 1) if lane + 1 < len(LANES) else BOTTOM
            yield svg.line(x, top(lane) + (BAR if covered else 0.0), x, below, css="mark")
    yield svg.text((END + AGAIN) / 2, 32, "requeue", anchor="middle", css="name")
    yield svg.text((END + AGAIN) / 2, top(2) + 9, "in the queue", anchor="middle")
    yield svg.text((END + AGAIN) / 2, top(2) + 24, "2 min or more", anchor="middle")
    yield svg.text((ASKED + END) / 2, 14, "--save-ahead", anchor="middle")
    for x in CHECKPOINTS:
        yield svg.marker(x, top(3) + 11, colour=ORANGE, label="a checkpoint is saved")


def outcomes() -> Iterator[str]:
    """What the end of an attempt leads to."""
    base = BOTTOM + 26
    yield svg.text(LEFT - 12, base, "then", anchor="end")
    for i, (name, why) in enumerate(OUTCOMES):
        yield svg.text(LEFT, base + 19 * i, name, css="name")
        yield svg.text(LEFT + 64, base + 19 * i, why)
    yield svg.marker(AGAIN + 10, base - 4, colour=ORANGE)
    yield svg.text(AGAIN + 22, base, "a checkpoint")


def picture() -> str:
    """The whole drawing."""
    title = "An attempt of a job: private folders, Ray, training beside a watchdog, its end, what follows"
    body = "".join([*bars(), *moments(), *outcomes()])
    return svg.standalone(svg.wrap(body, width=WIDTH, height=HEIGHT, title=title))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw an attempt of a job.")
    parser.add_argument("--out", type=Path, required=True)
    write_atomic(parser.parse_args().out, picture())


if __name__ == "__main__":
    main()
