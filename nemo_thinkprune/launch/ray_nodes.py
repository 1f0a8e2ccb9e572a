"""What a job on an existing Ray cluster needs of its nodes: wait for enough of them, run a command on each.

    python -m nemo_thinkprune.launch.ray_nodes wait --gpus 32 --deadline-s 900
    python -m nemo_thinkprune.launch.ray_nodes run [--out FOLDER] [--deadline-s 60] COMMAND ... < what each reads

Both use the cluster that RAY_ADDRESS names.  `wait` leaves with 0 and prints what is there, or with 1 after the
deadline; `run` leaves with the number of nodes on which the command failed or did not end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nemo_thinkprune.launch.ray_ready import NotAnswering, RayNode, ask_in_a_process

DEADLINE_S = 60.0
TRY_S = 20.0
PERIOD_S = 2.0
_LARGEST_FAILURES = 100  # an exit code has room for no more


def wait_for_gpus(
    ask: Callable[[float], list[RayNode]],
    *,
    gpus: float,
    deadline_s: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether the cluster has `gpus` GPUs before the deadline; says what it has whenever that changes.

    `ask(seconds)` gives the living nodes within that time or raises `NotAnswering`.
    """
    began, said = clock(), ""
    while True:
        try:
            nodes = ask(TRY_S)
            there = sum(node.gpus for node in nodes)
            text = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}, {there:g} of {gpus:g} GPUs"
            ready = there >= gpus and bool(nodes)
        except NotAnswering as error:
            text, ready = f"Ray does not answer: {error}", False
        if ready:
            say(f"Ray ready: {text}, {clock() - began:.1f} s")
            return True
        if text != said:
            say(text)
            said = text
        if clock() - began >= deadline_s:
            say(f"Ray not ready after {deadline_s:g} s: {text}")
            return False
        sleep(PERIOD_S)


def run_on_nodes(
    command: Sequence[str], *, given: bytes, deadline_s: float, out: Path | None, say: Callable[[str], None]
) -> int:
    """Run `command` on every living node, with `given` on its stdin; how many did not end with 0.

    `out`: folder in which NODE.txt gets what a node's command printed.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(_run_here)
        running = {}
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                name = f"{node['NodeManagerHostname']}-{node['NodeID'][:6]}"
                running[task.options(scheduling_strategy=there).remote(list(command), given, deadline_s)] = (
                    name
                )
        done, late = ray.wait(list(running), num_returns=len(running), timeout=deadline_s + TRY_S)
        failed = [running[ref] for ref in late]
        for ref in late:
            say(f"{running[ref]}: no answer within {deadline_s:g} s")
        for ref in done:
            try:
                code, text = ray.get(ref)
            except ray.exceptions.RayError as error:
                code, text = 1, f"{type(error).__name__}: the node did not answer\n"
            if out is not None:
                (out / f"{running[ref]}.txt").write_text(text, encoding="utf-8")
            if code != 0:
                failed.append(running[ref])
                say(f"{running[ref]}: {command[0]} ended with {code}: {text.strip()[-500:]}")
        return len(failed)
    finally:
        ray.shutdown()


def _run_here(command: list[str], given: bytes, deadline_s: float) -> tuple[int, str]:
    """On a node: exit code and what was printed."""
    try:
        ended = subprocess.run(
            command, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=deadline_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, f"{type(error).__name__}: {error}\n"
    return ended.returncode, ended.stdout.decode("utf-8", "replace")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(arguments)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        print("RAY_ADDRESS names no cluster: this belongs into a job of Ray's", file=sys.stderr)
        return 1

    def say(line: str) -> None:
        print(line, flush=True)

    if args.action == "wait":
        ready = wait_for_gpus(ask_in_a_process(address), gpus=args.gpus, deadline_s=args.deadline_s, say=say)
        return 0 if ready else 1
    given = sys.stdin.buffer.read() if not sys.stdin.isatty() else b""
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    failed = run_on_nodes(args.command, given=given, deadline_s=args.deadline_s, out=args.out, say=say)
    return min(failed, _LARGEST_FAILURES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ray_nodes", description="Nodes of the Ray cluster of RAY_ADDRESS.")
    actions = parser.add_subparsers(dest="action", required=True)
    wait = actions.add_parser("wait", help="wait until there are enough GPUs")
    wait.add_argument("--gpus", type=float, required=True, help="logical GPUs of all nodes together")
    wait.add_argument("--deadline-s", type=float, default=900.0, help="default %(default)s")
    run = actions.add_parser("run", help="run a command on every node, with this one's stdin")
    run.add_argument("--out", type=Path, help="folder for what they print, a file a node")
    run.add_argument("--deadline-s", type=float, default=DEADLINE_S, help="default %(default)s")
    run.add_argument("command", nargs=argparse.REMAINDER, help="program and arguments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
