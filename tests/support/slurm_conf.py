"""The configuration of a lab's Slurm: small waits everywhere, no accounting, nodes that need no cgroups."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SAME_FOR_ALL = """
ClusterName=lab
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=/run/munge/munge.socket.2,cred_expire=5
SlurmUser=root
SlurmdUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
SlurmctldTimeout=30
InactiveLimit=0
MinJobAge=600
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
"""

Addresses = Literal["both", "ipv4", "ipv6"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """What a lab is made of."""

    nodes: int = 3
    cpus: int = 4
    """Logical CPUs a node offers, however many this machine has; a job gets whole ones, jobs share a node."""
    gpus: tuple[int, ...] = ()
    """GPUs of each node, device files that are no GPUs; one number holds for all nodes, none: no node has any."""
    addresses: Addresses = "both"
    """What nodes have besides 127.0.0.1 and ::1."""
    max_minutes: int = 60
    """The partition's time limit, and of jobs that ask for none."""
    slurmd_timeout: int = 5
    """Seconds without an answer after which a node is down and its jobs end or are requeued; looked at every 5 s."""
    kill_wait: int = 3
    """Seconds between TERM and KILL at a job's time limit."""
    preempt_grace: int | None = None
    """With a number a second partition, ``urgent``, takes nodes from jobs, that many seconds after TERM to them."""
    extra: tuple[str, ...] = ()
    """More lines of slurm.conf; they come last, and of a repeated key the last value holds."""

    def __post_init__(self) -> None:
        if len(self.gpus) not in (0, 1, self.nodes):
            raise ValueError(f"gpus has {len(self.gpus)} numbers for {self.nodes} nodes")

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    def address(self, name: str) -> str:
        """The one that Slurm uses."""
        return self.addresses_of(name)[0].split("/")[0]

    def addresses_of(self, name: str) -> list[str]:
        """With their prefix lengths, IPv4 first; of the nodes or of ``login``."""
        number = 1 if name == "login" else 10 + int(name[1:])
        both = {"ipv4": f"10.77.0.{number}/24", "ipv6": f"fd77::{number}/64"}
        return [address for kind, address in both.items() if self.addresses in ("both", kind)]

    def gpus_of(self, name: str) -> int:
        if not self.gpus:
            return 0
        return self.gpus[0] if len(self.gpus) == 1 else self.gpus[int(name[1:]) - 1]


def write_configuration(folder: Path, settings: LabSettings, *, plugin: Path | None) -> None:
    """Write slurm.conf, gres.conf, plugstack.conf and the hosts file into `folder`."""
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text("\n".join(_slurm_conf(folder, settings)) + "\n")
    (folder / "gres.conf").write_text("\n".join(_gpus(folder, settings)) + "\n")
    (folder / "plugstack.conf").write_text(f"required {plugin} {folder}/containers.tsv\n" if plugin else "")
    (folder / "hosts").write_text("\n".join(_hosts(settings)) + "\n")


def _slurm_conf(folder: Path, settings: LabSettings) -> list[str]:
    nodes = [
        f"NodeName={name} NodeAddr={settings.address(name)}"
        f" CPUs={settings.cpus} RealMemory=8000 State=UNKNOWN"
        + (f" Gres=gpu:{settings.gpus_of(name)}" if settings.gpus_of(name) else "")
        for name in settings.names
    ]
    return [
        *SAME_FOR_ALL.split(),
        f"SlurmctldHost=login({settings.address('login')})",
        *(["CommunicationParameters=EnableIPv6"] if settings.addresses == "ipv6" else []),
        f"SlurmdTimeout={settings.slurmd_timeout}",
        f"KillWait={settings.kill_wait}",
        f"StateSaveLocation={folder}/state",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        *(["GresTypes=gpu"] if settings.gpus else []),
        f"PlugStackConfig={folder}/plugstack.conf",
        *nodes,
        *_partitions(settings),
        *settings.extra,
    ]


def _partitions(settings: LabSettings) -> list[str]:
    common = f"Nodes=ALL MaxTime={settings.max_minutes} State=UP OverSubscribe=NO"
    if settings.preempt_grace is None:
        return [f"PartitionName=test Default=YES {common}"]
    return [
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        f"PartitionName=test Default=YES {common} PriorityTier=1 GraceTime={settings.preempt_grace}",
        f"PartitionName=urgent {common} PriorityTier=2 PreemptMode=OFF",
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
    names = ["login", *settings.names]
    own = [f"{address.split('/')[0]} {name}" for name in names for address in settings.addresses_of(name)]
    return ["127.0.0.1 localhost", "::1 localhost ip6-localhost", *own]
