"""Seconds to score one step of training: 2,048 AIME-like responses of several thousand characters.

    python benchmarks/bench_reward.py [--runs 7] [--workers 2]

128 problems with 16 responses each; most end in an integer box, some in a wrong or differently written one,
a few in an expression, a list or no box at all, and a fifth is cut at the limit. Every run uses a fresh
scorer, so that nothing is remembered from the run before. The first run also starts the worker processes.
"""

import argparse
import random
import statistics
import time

from nemo_thinkprune.rewards.score import Scorer
from nemo_thinkprune.rewards.types import Item

_SENTENCES = (
    r"Let me set $x = \frac{a+b}{2}$ and try small cases first. ",
    r"Wait, I should double-check that: $3^{4} \cdot 7 = 567$, and modulo $1000$ nothing changes. ",
    r"So the number of ways is $\binom{12}{5} - \binom{7}{2}$, but that counts {symmetric} ones twice. ",
    "Hmm, another way to see this is to reflect the point across the line and use similar triangles. ",
    r"Therefore $m+n$ would be \[ 2\left(\sum_{k=1}^{n} k\right) + 1 \] which I will verify below. ",
)
_FORMS = (
    r"\boxed{%03d}", r"\boxed{%d}", r"$\boxed{%d}$.", r"\[ \boxed{\text{%d}} \]", r"\boxed{%d^\circ}",
    r"\boxed{n = %d}", r"\boxed {%d}", r"\boxed{\dfrac{%d}{1}}",
)  # fmt: skip
_ODD = (
    r"\boxed{\frac{3\sqrt{2}}{%d}}",
    r"\boxed{(%d, 2)}",
    r"\boxed{%d\pi}",
    "The answer is %d.",
    r"\boxed{x^2+%d}",
)


def responses(seed: int = 0) -> list[Item]:
    """2,048 responses, the same for the same seed."""
    generator = random.Random(seed)
    items = []
    for _ in range(128):
        gold = generator.randrange(1000)
        for _ in range(16):
            thought = "".join(generator.choices(_SENTENCES, k=generator.randrange(40, 160)))
            answer = gold if generator.random() < 0.5 else generator.randrange(1000)
            form = generator.choice(_ODD) if generator.random() < 0.02 else generator.choice(_FORMS)
            finished = generator.random() < 0.8
            end = (
                f"</think>\n\nThe computation gives the result.\n\n**Final Answer**\n{form % answer}"
                if finished
                else ""
            )
            items.append(Item(thought + end, f"{gold:03d}", finished))
    return items


def main() -> None:
    """Prints the size of the work, the seconds of each run and their median."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=7)
    arguments.add_argument("--workers", type=int, default=2)
    options = arguments.parse_args()
    items = responses()
    characters = sum(len(item.response) for item in items) / len(items)
    print(f"{len(items)} responses of {characters:.0f} characters on average, {options.workers} workers")
    cold, warm = [], []
    for _ in range(options.runs):
        with Scorer(
            workers=options.workers, deadline_s=5.0, memory_mb=1024, truncation="score_cut_text"
        ) as scorer:
            cold.append(_seconds(scorer, items))
            scorer.forget()
            warm.append(_seconds(scorer, items))
            started = len(scorer.processes)
    print(f"median {statistics.median(cold):.3f} s with {started} workers to start (all: {_list(cold)})")
    print(f"median {statistics.median(warm):.3f} s with workers running (all: {_list(warm)})")


def _seconds(scorer: Scorer, items: list[Item]) -> float:
    start = time.perf_counter()
    scorer.score(items)
    return time.perf_counter() - start


def _list(seconds: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in seconds)


if __name__ == "__main__":
    main()
