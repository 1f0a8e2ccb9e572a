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
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from support.slurm_conf import LabSettings, write_configuration

HERE = Path(__file__).parent
PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "unshare", "nsenter", "setpriv")
CLIENTS = ("sbatch", "srun", "salloc", "squeue", "sinfo", "scontrol", "scancel", "sacct", "sattach", "sstat")
INSTALL = "apt-get install --no-install-recommends slurm-wlm munge iproute2"
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"})
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@cache
def slurm_missing() -> str | None:
    """Why no lab can run here, or None."""
    if sys.platform != "linux":
        return "Slurm's nodes are made of Linux's namespaces"
    if os.geteuid() != 0:
        return "only root may make namespaces and network links"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"{', '.join(absent)} not found: {INSTALL}"
    probe = (
        "ip link add lan type bridge && ip link add port type veth peer name eth0 && mount -t tmpfs x /mnt"
    )
    spaces = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"]
    tried = subprocess.run([*spaces, probe], capture_output=True, text=True, timeout=20)
    return f"no namespaces here (CAP_SYS_ADMIN?): {tried.stderr.strip()}" if tried.returncode else None


def require_slurm() -> None:
    """Skip the test where no lab can run, saying why."""
    reason = slurm_missing()
    if reason:
        pytest.skip(f"no Slurm here: {reason}")


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """A process of a node: `pid` as the host counts, `node_pid` as the node does."""

    pid: int
    node_pid: int
    argv: tuple[str, ...]
    environ: Mapping[str, str]


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
        """What `scontrol show job` tells."""
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

    def node_state(self, node: str) -> str:
        """``idle``, ``mixed``, ``allocated``, ``down*`` ..., as sinfo writes it."""
        return self.run(["sinfo", "-h", "-N", "-n", node, "-o", "%T"]).stdout.split()[0]

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
        """Run a command in the node, outside any job."""
        spaces = ["--net", "--uts", "--ipc", "--mount", "--pid"]
        # `timeout` runs inside: killing nsenter would leave its child.
        ends = ["timeout", "--kill-after=1", str(timeout)]
        enter = ["nsenter", "--target", str(self._nodes[node].init), *spaces, "--", *ends]
        return self.run([*enter, *command], timeout=timeout + 5, check=check)

    def processes(self, node: str) -> list[NodeProcess]:
        """All processes of the node, its init included; empty when it is crashed."""
        found = self._nodes.get(node)
        return list(_processes_of(found.init)) if found else []

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
        """Take the power from a node: no process says goodbye, no connection is closed."""
        found = self._nodes.pop(node)
        self._in_network("ip", "link", "delete", node)
        os.kill(found.init, signal.SIGKILL)
        found.starter.wait(timeout=30)

    def unplug(self, node: str) -> None:
        """Pull a node's network cable; what runs there goes on."""
        self._in_network("ip", "link", "set", node, "down")

    def plug(self, node: str) -> None:
        """Plug the cable in again."""
        self._in_network("ip", "link", "set", node, "up")

    def boot(self, node: str) -> None:
        """Start a node that does not run; returns before Slurm knows of it (`wait_node`)."""
        if node in self._nodes:
            raise AssertionError(f"{node} runs")
        spaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        enter = ["nsenter", "--target", str(self._login), "--mount", "--pid", "--", "unshare", *spaces]
        init = ["bash", HERE / "slurm_node_init.sh", node, self.folder, *self.shared]
        starter = _start([*enter, *init], folder=self.folder, log=f"init-{node}.log")
        self._nodes[node] = found = _Node(starter, _first_descendant(starter, depth=2))
        self._in_network(
            *("ip", "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", str(found.init))
        )
        self._in_network("ip", "link", "set", node, "master", "lan", "up")
        addresses = [f"address add {self.settings.address6(node)}/64 dev eth0 nodad"]
        if self.settings.addresses == "both":
            addresses += [f"address add {self.settings.address4(node)}/24 dev eth0"]
        commands = "\n".join([*addresses, "link set lo up", "link set eth0 up"])
        enter = ["nsenter", "--net", "--target", str(found.init), "ip", "-batch", "-"]
        subprocess.run(enter, input=commands, text=True, check=True, timeout=10)
        mark = self.node_path(node, "/run/slurmd")
        self._poll(mark.exists, timeout=10, what=lambda: f"{node} does not start")
        (mark.parent / "plugged_in").touch()

    def _in_network(self, *command: str) -> None:
        enter = ["nsenter", f"--net=/proc/{self._login}/ns/net", *command]
        done = subprocess.run(enter, capture_output=True, text=True, timeout=10)
        if done.returncode:
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
        logs = [*self.folder.glob("*.log"), *self.folder.glob("*.stderr")]
        return "\n".join(f"--- {log.name}\n" + "\n".join(_tail(log)) for log in sorted(logs))

    def _end(self) -> None:
        for process in _in_same_namespace("net", self._login):
            os.kill(process, signal.SIGKILL)
        self._starter.kill()
        self._starter.wait(timeout=30)
        for node in self._nodes.values():
            node.starter.wait(timeout=30)


@contextmanager
def slurm_lab(folder: Path, *, shared: Sequence[Path] = (), **settings: object) -> Iterator[SlurmLab]:
    """A Slurm whose nodes are idle; `folder` must not exist or be empty, `settings` are those of `LabSettings`.

    Below /tmp and /dev/shm nodes see of the host only `folder`, `shared`, this checkout and Python's prefix.
    The thread that makes a lab must live as long as the lab.
    """
    require_slurm()
    made = LabSettings(**settings)  # type: ignore[arg-type]
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_configuration(folder, made, plugin=None)
    spaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
    starter = _start(
        ["unshare", *spaces, "bash", HERE / "slurm_login_init.sh", folder],
        folder=folder,
        log="init-login.log",
    )
    try:
        login = _first_descendant(starter, depth=1)
        prefixes = [Path(sys.prefix), Path(sys.base_prefix), HERE.parents[1]]
        seen = dict.fromkeys(path.resolve() for path in [folder, *prefixes, *shared])
        lab = SlurmLab(folder, made, tuple(seen), _environment(folder, login), starter, login)
        try:
            lab._poll(
                Path(f"/proc/{login}/root/run/munge/munge.socket.2").exists,
                timeout=20,
                what=lambda: "no munged",
            )
            for node in lab.nodes:
                lab.boot(node)
            lab._poll(lambda: _idle(lab), timeout=30, what=lambda: "nodes are not idle")
            yield lab
        finally:
            lab._end()
    finally:
        starter.kill()
        starter.wait(timeout=30)


def _idle(lab: SlurmLab) -> bool:
    states = lab.run(["sinfo", "-h", "-N", "-o", "%t"], check=False, timeout=20).stdout.split()
    return states == ["idle"] * lab.settings.nodes


def _environment(folder: Path, login: int) -> dict[str, str]:
    """Make wrappers of the client commands; in a node, where a job inherits this PATH, they step aside."""
    wrappers = folder / "bin"
    wrappers.mkdir()
    for name in CLIENTS:
        real = shutil.which(name, path=_PATH)
        if real is None:
            continue
        enter = f'nsenter --target {login} --net --uts --mount -- /bin/sh -c \'cd "$0" && exec "$@"\' "$PWD"'
        wrapper = wrappers / name
        wrapper.write_text(
            f'#!/bin/sh\n[ -e /run/slurmd ] && exec {real} "$@"\n'
            f'exec setpriv --pdeathsig KILL {enter} {real} "$@"\n'
        )
        wrapper.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TMPDIR"))}
    return {**kept, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{wrappers}:{kept.get('PATH', _PATH)}"}


def _start(command: Sequence[str | Path], *, folder: Path, log: str) -> subprocess.Popen[bytes]:
    """Start a process that the kernel kills when this thread ends; it gets none of our environment."""
    with open(folder / log, "ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf"), "LANG": "C.UTF-8", "HOME": "/root"},
            start_new_session=True,
        )


def _first_descendant(starter: subprocess.Popen[bytes], *, depth: int) -> int:
    """The init that `starter` forks, once it is there: by then its namespaces are made."""
    deadline = time.monotonic() + 20
    while starter.poll() is None and time.monotonic() < deadline:
        pid: int | None = starter.pid
        for _ in range(depth):
            pid = next(iter(_children(pid)), None) if pid else None
        if pid:
            return pid
        time.sleep(0.005)
    raise AssertionError(f"{starter.args} did not start; see the lab's init-*.log")


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _in_same_namespace(kind: str, pid: int) -> list[int]:
    try:
        wanted = os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except FileNotFoundError:
        return []
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if os.stat(f"/proc/{entry.name}/ns/{kind}").st_ino == wanted:
                found.append(int(entry.name))
        except OSError:  # it has ended, or is one that nobody may look at
            continue
    return found


def _processes_of(init: int) -> Iterator[NodeProcess]:
    for pid in _in_same_namespace("pid", init):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            argv = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
            environ = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
        except OSError:  # it has ended, or is one that nobody may look at
            continue
        numbers = re.search(r"^NSpid:\s+(.*)$", status, re.MULTILINE)
        assert numbers
        pairs = dict(pair.split("=", 1) for pair in environ if "=" in pair)
        yield NodeProcess(pid, int(numbers[1].split()[-1]), tuple(argv), pairs)


def _tail(log: Path, lines: int = 15) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-lines:]
