"""What a node tells about itself: plain data that travels as JSON, without any judgement.

Everything has a default: a node of another version of this program must still be understood, and told so.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Question:
    """What a node is asked.

    `token` names this asking; `folders` are to be shared by all nodes and hold `canary`, the folder made for it,
    by label; `paths` are to be readable, by what names them; `port` is listened on; the two times are seconds.
    """

    token: str
    folders: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    nemo_rl_root: str | None = None
    scratch: str = "/tmp"
    port: int = 0
    asker: str = ""
    startup_s: float = 60.0
    patience_s: float = 75.0


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a file system; -1 where it does not say.  `problem`: why it could not be asked."""

    path: str = ""
    total: int = -1
    free: int = -1
    inodes_free: int = -1
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FoundNemoRL:
    """NeMo-RL on a node, or why there is none."""

    root: str = ""
    version: str = ""
    importable: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """A node as such.  Limits are -1 for unlimited; `variables` are names, never values.

    `is_shared`: a job of Slurm has but some of its processors, so that other jobs may use the rest of it.
    """

    hostname: str = ""
    user: str = ""
    python: str = ""
    executable: str = ""
    package_hash: str = ""
    package_folder: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    unmet: list[str] = field(default_factory=list)
    nemo_rl: FoundNemoRL = field(default_factory=FoundNemoRL)
    variables: list[str] = field(default_factory=list)
    open_files: tuple[int, int] = (-1, -1)
    locked_memory: int = -1
    memory_total: int = -1
    memory_free: int = -1
    shm: Space = field(default_factory=Space)
    scratch: Space = field(default_factory=Space)
    scratch_problem: str = ""
    ray_folder_owner: str = ""
    py_spy: str = ""
    may_trace: bool = True
    netrc: bool = False
    hub_token: bool = False
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as nvidia-smi shows it; MiB of memory; `ecc_errors` that could not be corrected, -1: not told."""

    index: int
    name: str = ""
    memory_total: int = -1
    memory_used: int = -1
    ecc_errors: int = -1
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of a node; `visible` is CUDA_VISIBLE_DEVICES, None when it is not set."""

    devices: list[Gpu] = field(default_factory=list)
    driver: str = ""
    cuda: str = ""
    visible: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that all nodes are to share.

    `seen` are the nodes whose files this one saw; `lock` is "" when flock works over nodes, "local" when another
    node did not see it, "unknown" when there was no other, else the error.
    """

    label: str
    path: str = ""
    problem: str = ""
    file_system: str = ""
    seen: list[str] = field(default_factory=list)
    lock: str = "unknown"
    space: Space = field(default_factory=Space)


@dataclass(frozen=True, slots=True)
class File:
    """A path that a recipe or the environment names: `size` of a file, -1 for a folder."""

    label: str
    path: str = ""
    problem: str = ""
    size: int = -1


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node seen from this one: its addresses by name, and its clock less ours, in seconds."""

    name: str
    addresses: list[str] = field(default_factory=list)
    address: str = ""
    problem: str = ""
    offset_s: float | None = None
    round_trip_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Network:
    """Ports and neighbours.  `listening`: ports in use of those that NeMo-RL and the job draw from."""

    port: int = 0
    addresses: list[str] = field(default_factory=list)
    listening: list[int] = field(default_factory=list)
    ephemeral: tuple[int, int] = (0, 0)
    proxies: list[str] = field(default_factory=list)
    proxied: list[str] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """All that one node told."""

    node: str
    host: Host = field(default_factory=Host)
    gpus: Gpus = field(default_factory=Gpus)
    folders: list[Folder] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    network: Network = field(default_factory=Network)
