"""Whether a Slurm of virtual nodes can run on this machine, and the skip that says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from support.namespaces import system_program

PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "unshare", "nsenter", "setpriv")
INSTALL = "apt-get install --no-install-recommends slurm-wlm munge iproute2"
SPANK_HEADER = Path("/usr/include/slurm/spank.h")
INSTALL_SPANK = "apt-get install --no-install-recommends gcc libc6-dev libslurm-dev"


@cache
def slurm_missing() -> str | None:
    """Why no lab can run here, or None."""
    if sys.platform != "linux":
        return "its nodes are made of Linux's namespaces"
    if os.geteuid() != 0:
        return "only root may make its nodes' namespaces and network links"
    absent = [name for name in PROGRAMS if system_program(name) is None]
    if absent:
        return f"{', '.join(absent)} not found: {INSTALL}"
    probe = "ip link add lan type bridge && ip link add n1 type veth peer name eth0 && mount -t tmpfs x /mnt"
    spaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc"]
    tried = subprocess.run(
        ["unshare", *spaces, "sh", "-c", probe], capture_output=True, text=True, timeout=20
    )
    return f"CAP_SYS_ADMIN is needed: {tried.stderr.strip()}" if tried.returncode else None


def spank_missing() -> str | None:
    """Why the stand-in for pyxis cannot be compiled here, or None."""
    if system_program("gcc") and SPANK_HEADER.exists():
        return None
    return f"no compiler or no header of Slurm: {INSTALL_SPANK}"


def require_slurm(*, containers: bool = False) -> None:
    """Skip the test where no lab can run (`containers`: none with pyxis's options), saying why."""
    reason = slurm_missing() or (spank_missing() if containers else None)
    if reason:
        pytest.skip(f"no Slurm of virtual nodes here: {reason}")
