"""The configuration of a lab's Slurm: small waits everywhere, no accounting, nodes that need no cgroups."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Addresses = Literal["both", "ipv6"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """What a lab is made of."""

    nodes: int = 3
    cpus: int = 4
    """Logical CPUs a node offers, however many this machine has; a job gets whole ones, jobs share a node."""
    gpus: tuple[int, ...] = ()
    """GPUs of each node, device files that stand for /dev/zero; one number holds for all nodes, none: no GPUs."""
    addresses: Addresses = "both"
    """``ipv6``: nodes have no IPv4 address but 127.0.0.1."""
    max_minutes: int = 60
    slurmd_timeout: int = 5
    """Seconds without an answer after which a node is down; its jobs are then requeued."""
    kill_wait: int = 3
    """Seconds between TERM and KILL at a job's time limit."""
    extra: tuple[str, ...] = ()
    """More lines of slurm.conf; they come last."""

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    def address4(self, name: str) -> str:
        return f"10.77.0.{10 + int(name[1:])}"

    def address6(self, name: str) -> str:
        return f"fd77::{10 + int(name[1:])}"

    def gpus_of(self, name: str) -> int:
        if not self.gpus:
            return 0
        return self.gpus[0] if len(self.gpus) == 1 else self.gpus[int(name[1:]) - 1]


def write_configuration(folder: Path, settings: LabSettings, *, plugin: Path | None) -> None:
    """Write slurm.conf, gres.conf, cgroup.conf, plugstack.conf and the hosts file into `folder`."""
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text("\n".join(_slurm_conf(folder, settings)) + "\n")
    (folder / "gres.conf").write_text("\n".join(_gpus(folder, settings)) + "\n")
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (folder / "plugstack.conf").write_text(f"required {plugin} {folder}/containers.tsv\n" if plugin else "")
    (folder / "hosts").write_text("\n".join(_hosts(settings)) + "\n")


def _slurm_conf(folder: Path, settings: LabSettings) -> list[str]:
    only6 = settings.addresses == "ipv6"
    nodes = [
        f"NodeName={name} NodeAddr={settings.address6(name) if only6 else settings.address4(name)}"
        f" CPUs={settings.cpus} RealMemory=8000 State=UNKNOWN"
        + (f" Gres=gpu:{settings.gpus_of(name)}" if settings.gpus_of(name) else "")
        for name in settings.names
    ]
    return [
        "ClusterName=lab",
        f"SlurmctldHost=login({'fd77::1' if only6 else '10.77.0.1'})",
        *(["CommunicationParameters=EnableIPv6"] if only6 else []),
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        "AuthInfo=socket=/run/munge/munge.socket.2,cred_expire=5",
        "MpiDefault=none",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SwitchType=switch/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "JobCompType=jobcomp/none",
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        "JobRequeue=1",
        "SlurmctldTimeout=30",
        f"SlurmdTimeout={settings.slurmd_timeout}",
        f"KillWait={settings.kill_wait}",
        "InactiveLimit=0",
        "MinJobAge=600",
        f"StateSaveLocation={folder}/state",
        "SlurmdSpoolDir=/run/slurmd",
        "SlurmctldPidFile=/run/slurmctld.pid",
        "SlurmdPidFile=/run/slurmd.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0",
        *(["GresTypes=gpu"] if settings.gpus else []),
        f"PlugStackConfig={folder}/plugstack.conf",
        *nodes,
        f"PartitionName=test Nodes=ALL Default=YES MaxTime={settings.max_minutes} State=UP OverSubscribe=NO",
        *settings.extra,
    ]


def _gpus(folder: Path, settings: LabSettings) -> list[str]:
    """Device files for the largest node; a count without files leaves a node in the state ``inval``."""
    counts = {name: settings.gpus_of(name) for name in settings.names}
    if not any(counts.values()):
        return []
    (folder / "dev").mkdir()
    for number in range(max(counts.values())):
        os.mknod(folder / "dev" / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    return [
        f"NodeName={name} Name=gpu File={folder}/dev/gpu[0-{count - 1}]"
        for name, count in counts.items()
        if count
    ]


def _hosts(settings: LabSettings) -> list[str]:
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    hosts = {"login": ("10.77.0.1", "fd77::1")}
    hosts |= {name: (settings.address4(name), settings.address6(name)) for name in settings.names}
    for name, (address4, address6) in hosts.items():
        lines += (
            [f"{address6} {name}"]
            if settings.addresses == "ipv6"
            else [f"{address4} {name}", f"{address6} {name}"]
        )
    return lines
