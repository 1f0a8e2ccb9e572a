"""A real Slurm of several nodes on one Linux machine.

Each node is a set of namespaces (net, mount, uts, ipc, pid) with its own slurmd, addresses, host name, process
list, /tmp, /dev/shm and /run; the rest of the file system is the host's, as a cluster's shared one. The
controller and the bridge that joins the nodes live in namespaces too, so labs do not meet each other or the
host: every lab has the same names, addresses and ports. Client commands enter the controller's namespaces
through wrappers on `SlurmLab.environment`'s PATH.

Nothing outlives a lab. Its nodes are in the pid namespace of the login node's init, which the kernel kills when
the thread that started the lab ends, however it ends; links and mounts go with the last process in a namespace.
Nodes reach each other and the login node, and nothing else.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.container_flags import ContainerTask, compile_plugin, read_record
from support.namespaces import (
    SYSTEM_PATH,
    NodeProcess,
    descendant,
    inhabitants,
    namespace,
    processes_around,
    start_bound,
    system_program,
)
from support.slurm_conf import LabSettings, write_configuration
from support.slurm_here import require_slurm

HERE = Path(__file__).parent
CLIENTS = ("sbatch", "srun", "salloc", "squeue", "sinfo", "scontrol", "scancel", "sacct", "sattach", "sstat")
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"})


@dataclass(slots=True)
class _Node:
    starter: subprocess.Popen[bytes]
    init: int


@dataclass(slots=True)
class SlurmLab:
    """A lab that runs; made by `slurm_lab`. `shared` holds the folders that nodes see of the private places."""

    folder: Path
    settings: LabSettings
    shared: tuple[Path, ...]
    environment: dict[str, str]
    _starter: subprocess.Popen[bytes]
    _login: int
    _nodes: dict[str, _Node] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        """The nodes' names, n1 and so on, whether they run or not."""
        return self.settings.names

    def run(
        self,
        command: Sequence[str | Path],
        *,
        timeout: float = 30,
        check: bool = True,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user on the login node would; with `check` a failure shows what it printed."""
        done = subprocess.run(
            [str(part) for part in command],
            env={**self.environment, **(environment or {})},
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def submit(self, script: str, *options: str, timeout: float = 30) -> int:
        """Submit `script` (its text) with sbatch's `options`; returns the job's id."""
        path = self.folder / f"script_{time.monotonic_ns()}.sh"
        path.write_text(script)
        return int(self.run(["sbatch", "--parsable", *options, path], timeout=timeout).stdout.split(";")[0])

    def job(self, job_id: int) -> dict[str, str]:
        """What `scontrol show job` tells, JobState, Reason, Restarts, NodeList ... as text."""
        line = self.run(["scontrol", "show", "job", "-o", str(job_id)]).stdout.strip()
        parts = re.split(r"(?:^| )([A-Z][A-Za-z0-9/:_]*)=", line)
        return dict(zip(parts[1::2], parts[2::2], strict=True))

    def wait(self, job_id: int, states: Collection[str] = ENDED, *, timeout: float = 60) -> dict[str, str]:
        """Wait until the job is in one of `states`; returns what `job` then says."""
        job: dict[str, str] = {}

        def reached() -> bool:
            nonlocal job
            job = self.job(job_id)
            return job["JobState"] in states

        self._poll(reached, timeout=timeout, what=lambda: f"job {job_id} is not {sorted(states)}: {job}")
        return job

    def start_now(self, job_id: int) -> None:
        """Start a requeued job without the 6 s that Slurm lets pass: cred_expire, of which 5 is the least, and 1."""
        self._poll(
            lambda: self.job(job_id)["Reason"] == "BeginTime",
            timeout=30,
            what=lambda: f"job {job_id} waits for no time: {self.job(job_id)}",
        )
        self.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now"])

    def end_in(self, job_id: int, seconds: int) -> None:
        """Move the job's time limit to `seconds` from now.

        Slurm looks every 30 s: it ends the job up to that much later, and sends its --signal that much earlier.
        """
        self.run(["scontrol", "update", f"JobId={job_id}", f"EndTime=now+{seconds}"])

    def containers(self) -> list[ContainerTask]:
        """The tasks so far that were given options of pyxis; for labs made with ``containers=True``."""
        return read_record(self.folder / "containers.tsv")

    def node_state(self, node: str) -> str:
        """``idle``, ``mixed``, ``allocated``, ``completing``, ``down``, with ``*`` when it does not respond.

        Not by sinfo, which may show a node as mixed for good when its last job ended in the second of another change.
        """
        told = self.run(["scontrol", "show", "node", "-o", node]).stdout
        found = re.search(r" State=(\S+)", told)
        assert found, told
        state, *flags = found[1].rstrip("*").split("+")
        if "COMPLETING" in flags and state != "DOWN":
            state = "COMPLETING"
        return state.lower() + ("*" if "NOT_RESPONDING" in flags or found[1].endswith("*") else "")

    def wait_node(self, node: str, states: Collection[str] = ("idle",), *, timeout: float = 60) -> None:
        """Wait until Slurm holds the node for being in one of `states`."""
        self._poll(
            lambda: self.node_state(node) in states,
            timeout=timeout,
            what=lambda: f"{node} is {self.node_state(node)}, not {sorted(states)}",
        )

    def in_node(
        self, node: str, command: Sequence[str | Path], *, timeout: float = 30, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node, outside any job, with ``/`` as its working directory."""
        spaces = ["--net", "--uts", "--ipc", "--mount", "--pid"]
        # `timeout` runs inside: killing nsenter would leave its child.
        ends = ["timeout", "--kill-after=1", str(timeout)]
        enter = ["nsenter", "--target", str(self._nodes[node].init), *spaces, "--", *ends]
        return self.run([*enter, *command], timeout=timeout + 5, check=check)

    def processes(self, node: str) -> list[NodeProcess]:
        """All processes of the node, its init included; empty when it is crashed."""
        found = self._nodes.get(node)
        return list(processes_around(found.init)) if found else []

    def node_path(self, node: str, path: str) -> Path:
        """Where the host finds a path of the node, be it private; of use while the node runs."""
        return Path(f"/proc/{self._nodes[node].init}/root{path}")

    def node_files(self, node: str, path: str = "/tmp") -> list[str]:
        """What the node holds below its private `path`, shared folders left out: paths as the node sees them."""
        shared = [str(folder) for folder in self.shared]
        found: list[str] = []

        def search(folder: str) -> None:
            for entry in os.scandir(self.node_path(node, folder)):
                inside = f"{folder.rstrip('/')}/{entry.name}"
                if inside in shared:
                    continue
                if not any(other.startswith(f"{inside}/") for other in shared):
                    found.append(inside)
                if entry.is_dir(follow_symlinks=False):
                    search(inside)

        search(path)
        return sorted(found)

    def crash(self, node: str) -> None:
        """Take the power from a node: no process says goodbye, no connection is closed.

        Slurm holds it for down after 6 to 10 s; other nodes get no answer from it, not even a refusal.
        """
        found = self._nodes.pop(node)
        self._in_network("ip", "link", "delete", node)
        self._route("add", node)
        os.kill(found.init, signal.SIGKILL)
        found.starter.wait(timeout=30)

    def unplug(self, node: str) -> None:
        """Pull a node's network cable; what runs there goes on."""
        self._in_network("ip", "link", "set", node, "down")
        self._route("add", node)

    def plug(self, node: str) -> None:
        """Plug the cable in again."""
        self._in_network("ip", "link", "set", node, "up")
        self._route("delete", node)

    def boot(self, node: str) -> None:
        """Start a node that does not run, its memory empty; Slurm takes a moment to know of it (`wait_node`)."""
        if node in self._nodes:
            raise AssertionError(f"{node} runs")
        spaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        enter = ["nsenter", "--target", str(self._login), "--mount", "--pid", "--", "unshare", *spaces]
        init: list[str | Path] = ["bash", HERE / "slurm_node_init.sh", node, self.folder, *self.shared]
        log = self.folder / f"init-{node}.log"
        starter = start_bound([*enter, *init], log=log, environment=_daemons(self.folder))
        self._nodes[node] = found = _Node(starter, descendant(starter, depth=2))
        other_end = ["peer", "name", "eth0", "netns", str(found.init)]
        self._in_network("ip", "link", "add", node, "type", "veth", *other_end)
        self._in_network("ip", "link", "set", node, "master", "lan", "up")
        self._route("delete", node, check=False)
        # nodad: an IPv6 address is of use at once, not when nobody has claimed it for a second.
        commands = [
            f"address add {address} dev eth0" + (" nodad" if ":" in address else "")
            for address in self.settings.addresses_of(node)
        ]
        commands += ["link set lo up", "link set eth0 up"]
        batch = ["nsenter", f"--net=/proc/{found.init}/ns/net", "ip", "-batch", "-"]
        subprocess.run(batch, input="\n".join(commands), text=True, check=True, timeout=10)
        mark = self.node_path(node, "/run/lab_node")
        self._poll(mark.exists, timeout=10, what=lambda: f"{node} does not start")
        mark.with_name("plugged_in").touch()

    def stop_slurmd(self, node: str) -> None:
        """End slurmd alone; the node's jobs go on."""
        self.node_path(node, "/run/slurmd_off").touch()
        _end_all("slurmd", self._nodes[node].init)

    def start_slurmd(self, node: str) -> None:
        """Start slurmd after `stop_slurmd`."""
        self.node_path(node, "/run/slurmd_off").unlink()

    def stop_controller(self) -> None:
        """End slurmctld: client commands wait and fail, jobs go on."""
        (self.folder / "controller_off").touch()
        _end_all("slurmctld", self._login)

    def start_controller(self) -> None:
        """Start slurmctld after `stop_controller`; returns when it answers."""
        (self.folder / "controller_off").unlink()
        self._poll(
            lambda: self.run(["scontrol", "ping"], check=False).returncode == 0,
            timeout=30,
            what=lambda: "slurmctld does not answer",
        )

    def _route(self, verb: str, node: str, *, check: bool = True) -> None:
        """The controller, and it alone, is told at once that a node is not there.

        Its ping else waits 12 s for an answer, twice, before the node is down; less would fail on a busy machine.
        """
        for address in self.settings.addresses_of(node):
            self._in_network("ip", "route", verb, "unreachable", address.split("/")[0], check=check)

    def _in_network(self, *command: str, check: bool = True) -> None:
        enter = ["nsenter", f"--net=/proc/{self._login}/ns/net", *command]
        done = subprocess.run(enter, capture_output=True, text=True, timeout=10)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}")

    def _poll(self, reached: Callable[[], bool], *, timeout: float, what: Callable[[], str]) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            if self._starter.poll() is not None:
                raise AssertionError(f"the lab's login node is gone:\n{self._logs()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"after {timeout} s {what()}\n{self._logs()}")
            time.sleep(0.05)

    def _logs(self) -> str:
        logs = [log for log in sorted(self.folder.glob("*.log")) if log.stat().st_size]
        return "\n".join(f"--- {log.name}\n{_tail(log)}" for log in logs)

    def _end(self) -> None:
        networks = {
            namespace("net", pid) for pid in (self._login, *(node.init for node in self._nodes.values()))
        }
        for pid in inhabitants("net", networks):  # clients that still run do so in the host's pid namespace
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._starter.kill()
        self._starter.wait(timeout=30)
        for node in self._nodes.values():
            node.starter.wait(timeout=30)


@contextmanager
def slurm_lab(
    folder: Path, *, shared: Sequence[Path] = (), containers: bool = False, **settings: object
) -> Iterator[SlurmLab]:
    """A Slurm whose nodes are idle; `settings` are those of `LabSettings`.

    `folder` is made, or is there and empty. Below /tmp and /dev/shm nodes see of the host only `folder`, `shared`,
    this checkout and Python's prefix. With `containers` srun and sbatch know pyxis's options. The thread that
    makes a lab must live as long as the lab. Skips the test where Slurm is missing.
    """
    require_slurm(containers=containers)
    made = LabSettings(**settings)  # type: ignore[arg-type]
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_configuration(folder, made, plugin=compile_plugin(folder) if containers else None)
    spaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
    init: list[str | Path] = ["unshare", *spaces, "bash", HERE / "slurm_login_init.sh", folder]
    starter = start_bound(init, log=folder / "init-login.log", environment=_daemons(folder))
    try:
        login = descendant(starter, depth=1)
    except BaseException:
        starter.kill()
        starter.wait(timeout=30)
        raise
    places = [folder, Path(sys.prefix), Path(sys.base_prefix), HERE.parents[1], *shared]
    seen = tuple(dict.fromkeys(path.resolve() for path in places))
    lab = SlurmLab(folder, made, seen, _environment(folder, login), starter, login)
    try:
        socket = Path(f"/proc/{login}/root/run/munge/munge.socket.2")
        lab._poll(socket.exists, timeout=20, what=lambda: "munged does not start")
        for node in lab.nodes:
            lab.boot(node)
        lab._poll(lambda: _idle(lab), timeout=30, what=lambda: "nodes are not idle")
        yield lab
    finally:
        lab._end()


def _idle(lab: SlurmLab) -> bool:
    states = lab.run(["sinfo", "-h", "-N", "-p", "test", "-o", "%t"], check=False, timeout=20).stdout.split()
    return states == ["idle"] * lab.settings.nodes


def _end_all(name: str, init: int) -> None:
    """End the processes of that name around `init` and wait until they are gone."""

    def found() -> list[int]:
        return [process.pid for process in processes_around(init) if process.argv[:1] == (name,)]

    for pid in found():
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while found():
        if time.monotonic() > deadline:
            raise AssertionError(f"{name} does not end")
        time.sleep(0.02)


def _daemons(folder: Path) -> dict[str, str]:
    return {"SLURM_CONF": str(folder / "slurm.conf")}


def _environment(folder: Path, login: int) -> dict[str, str]:
    """Make wrappers of the client commands; in a node, where a job inherits this PATH, they step aside."""
    wrappers = folder / "bin"
    wrappers.mkdir()
    enter = f'nsenter --target {login} --net --uts --mount -- sh -c \'cd "$0" && exec "$@"\' "$PWD"'
    for name, real in ((name, system_program(name)) for name in CLIENTS):
        if real is None:
            continue
        wrapper = wrappers / name
        wrapper.write_text(
            f'#!/bin/sh\n[ -e /run/lab_node ] && exec {real} "$@"\n'
            f'exec setpriv --pdeathsig KILL {enter} {real} "$@"\n'
        )
        wrapper.chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "TMPDIR" and not name.startswith(("SLURM", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_"))
    }
    return {**kept, **_daemons(folder), "PATH": f"{wrappers}:{kept.get('PATH', SYSTEM_PATH)}"}


def _tail(log: Path, lines: int = 15) -> str:
    told = [line for line in log.read_text(errors="replace").splitlines() if "mpi" not in line.lower()]
    return "\n".join(told[-lines:])
