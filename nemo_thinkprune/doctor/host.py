"""Facts about the machine this runs on; looks and asks, changes nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import pwd
import re
import resource
import shutil
import socket
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import checkpoints_tools
import nemo_thinkprune
from nemo_thinkprune.cluster.find import find_nemo_rl
from nemo_thinkprune.doctor.facts import FoundNemoRL, Host, Space
from nemo_thinkprune.doctor.hostlist import expand
from nemo_thinkprune.recipe.errors import UserError

PACKAGES = (
    "nemo-thinkprune", "torch", "megatron-core", "transformers", "ray", "vllm", "transformer-engine", "pydantic",
    "math-verify", "wandb",
)  # fmt: skip
VARIABLES = (
    "HF_HOME", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "WANDB_API_KEY", "WANDB_MODE", "NETRC",
    "NEMO_RL_ROOT", "NEMO_RL_VENV_DIR", "TORCH_CUDA_ARCH_LIST", "NRL_MEGATRON_CHECKPOINT_DIR", "RAY_ADDRESS",
    "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
_TRACE_CAPABILITY = 19  # CAP_SYS_PTRACE


def host_facts(*, nemo_rl_root: Path | None, scratch: str) -> Host:
    """Versions, limits, memory and places of this machine."""
    soft, hard = (_limit(value) for value in resource.getrlimit(resource.RLIMIT_NOFILE))
    memory_total, memory_free = _memory()
    return Host(
        hostname=socket.gethostname(),
        user=_user(os.geteuid()),
        python=platform.python_version(),
        executable=sys.executable,
        package_hash=package_hash(),
        package_folder=str(Path(nemo_thinkprune.__path__[0]).parent),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        unmet=unmet_requirements(),
        nemo_rl=_nemo_rl(nemo_rl_root),
        variables=[name for name in VARIABLES if name in os.environ],
        open_files=(soft, hard),
        locked_memory=_limit(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]),
        memory_total=memory_total,
        memory_free=memory_free,
        shm=space("/dev/shm"),
        scratch=space(scratch),
        scratch_problem=_scratch_problem(scratch),
        ray_folder_owner=_foreign_owner(Path("/tmp/ray")),
        py_spy=shutil.which("py-spy") or _beside_python("py-spy"),
        may_trace=_may_trace(),
        netrc=Path(os.environ.get("NETRC") or Path.home() / ".netrc").exists(),
        hub_token=_hub_token(),
        is_shared=_is_shared(),
    )


def package_hash() -> str:
    """A fingerprint of this program's own files: equal on two nodes when both would run the same code."""
    digest = hashlib.sha256()
    for package in (nemo_thinkprune, checkpoints_tools):
        folder = Path(package.__path__[0])
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".py", ".jinja") and file.is_file():
                name = f"{package.__name__}/{file.relative_to(folder)}\0"
                digest.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def unmet_requirements() -> list[str]:
    """This program's own requirements that are not installed, or in another version: ``ray>=2 (is 1.0)``."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return []
    found = []
    for text in metadata.requires("nemo-thinkprune") or [] if _version("nemo-thinkprune") else []:
        try:
            asked = Requirement(text)
        except InvalidRequirement:
            continue
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        version = _version(asked.name)
        if version is None or not asked.specifier.contains(version, prereleases=True):
            found.append(f"{asked.name}{asked.specifier} ({f'is {version}' if version else 'missing'})")
    return found


def space(path: str) -> Space:
    """Free space and inodes of the file system that holds `path`, for one who is not root; quotas are not in it."""
    try:
        state = os.statvfs(path)
    except OSError as error:
        return Space(path, problem=error.strerror or str(error))
    inodes = state.f_favail if state.f_files else -1  # btrfs and some network file systems count none
    return Space(path, state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize, inodes)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nemo_rl(root: Path | None) -> FoundNemoRL:
    try:
        found = find_nemo_rl(root)
    except (UserError, OSError, ValueError) as error:
        return FoundNemoRL(problem=str(error))
    return FoundNemoRL(str(found.root), found.version, found.importable)


def _limit(value: int) -> int:
    return -1 if value == resource.RLIM_INFINITY else value


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _memory() -> tuple[int, int]:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return -1, -1
    found = [re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in ("MemTotal", "MemAvailable")]
    total, free = (int(match[1]) * 1024 if match else -1 for match in found)
    return total, free


def _scratch_problem(scratch: str) -> str:
    """Why nothing can be made and run there; empty when it can."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="thinkprune-doctor-", dir=scratch) as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
        ):
            listener.bind(f"{folder}/s")
        return ""
    except OSError as error:
        return error.strerror or str(error)


def _foreign_owner(folder: Path) -> str:
    try:
        uid = folder.stat().st_uid
    except OSError:
        return ""
    return "" if uid == os.geteuid() else _user(uid)


def _beside_python(program: str) -> str:
    file = Path(sys.executable).parent / program
    return str(file) if file.is_file() else ""


def _may_trace() -> bool:
    """Whether one process of ours may look into another that it did not start."""
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return True  # no Yama: the kernel asks for the same user alone
    if scope in (1, 2):
        return _has_capability(_TRACE_CAPABILITY)
    return scope == 0


def _has_capability(number: int) -> bool:
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    match = re.search(r"^CapEff:\s+([0-9a-f]+)", text, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> number & 1)


def _is_shared() -> bool:
    """Whether a job of Slurm's, in which this runs, has but some of the processors of this machine."""
    counts: list[int] = []  # of the job, such as 72(x2),36; SLURM_CPUS_ON_NODE is of the step alone
    for match in re.finditer(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_JOB_CPUS_PER_NODE", "")):
        counts += [int(match[1])] * int(match[2] or 1)
    names = expand(os.environ.get("SLURM_JOB_NODELIST", ""))
    given = dict(zip(names, counts, strict=False)).get(os.environ.get("SLURMD_NODENAME", ""))
    return given is not None and given < (os.cpu_count() or 1)


def _hub_token() -> bool:
    """Whether a token for the hub is kept in a file."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_TOKEN_PATH") or home / "token").exists()
