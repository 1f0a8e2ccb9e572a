"""The process that judges one pair of answers at a time and may be killed at any moment.

Protocol: one JSON object a line. The first line out is `{"ready": true}`; then for each line in,
`{"id": 1, "answer": "...", "gold": "..."}`, one line out: `{"id": 1, "equal": true}` or
`{"id": 1, "error": "memory"}`, after which the process ends. It also ends when its input does.

Started by pool.py as `python -m nemo_thinkprune.rewards.worker MEMORY_MB PARENT_PID`.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, TextIO

from nemo_thinkprune.rewards.equality import equal

_PR_SET_PDEATHSIG = 1
_RECURSION = 3_000
WARM_UP = (
    (r"\frac{\sqrt{8}}{x}", r"\frac{2\sqrt{2}}{x}"),
    (r"2x-2y+4=0", r"x-y+2=0"),
    (r"x^2-3x+2=0", r"x=1"),
    (r"\{\sqrt{2},\infty\}", r"[0,\sqrt{2})\cup(2,\infty)"),
    (r"1<x<\sqrt{2}", r"(1,\sqrt{2})"),
    (r"\begin{pmatrix}\sqrt{4}\\x\end{pmatrix}", r"\begin{pmatrix}2\\x\end{pmatrix}"),
    (r"\lfloor\sqrt{n}\rfloor+\log_2 n+\sin(\pi/5)+n!+\binom{n}{2}", r"\sum_{k=1}^{n}k"),
    (r"\int_0^\infty e^{-x} dx", "1"),
    (r"\int_0^1 x^2 dx", r"\sqrt{\frac{1}{9}}"),
    (r"\lim_{x\to 0}\frac{\sin x}{x}+i", r"1+\sqrt{-1}"),
)


def main(memory_mb: int, parent: int) -> None:
    """Serves pairs until the input ends. Sets its limits before it imports anything that parses."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # a library's print is no reply
    from nemo_thinkprune.rewards import expressions

    for pair in WARM_UP:  # sympy imports lazily, which the closed gates would refuse
        judge(*pair)
    limit_resources(memory_mb)
    sys.setrecursionlimit(_RECURSION)
    expressions.close_evaluation()
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _reply(replies, {"id": request["id"], "equal": judge(request["answer"], request["gold"])})
        except MemoryError:
            _reply(replies, {"id": request["id"], "error": "memory"})
            return


def judge(answer: str, gold: str) -> bool:
    """The final word on a pair: equality.equal with math-verify for the expressions."""
    from nemo_thinkprune.rewards import expressions

    return bool(equal(answer, gold, expressions.compare))


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request reached the kernel
        os._exit(1)


def limit_resources(memory_mb: int) -> None:
    """Bounds the address space; forbids core dumps and writing to files."""
    memory = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _reply(stream: TextIO, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
