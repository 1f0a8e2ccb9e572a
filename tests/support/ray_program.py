"""What a job may run in the place of the trainer: an actor on every node, and a gloo group over all of them.

    python ray_program.py FOLDER NODES

Writes FOLDER/attempt_N.json and goes on summing over all actors until FOLDER/go is there. Like NeMo-RL it hands
its whole environment on to Ray's workers. Of secrets only digests are written down.
"""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WANDB_HOST = "api.wandb.ai"


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@ray.remote(num_cpus=1, max_restarts=0)
class Member:
    """A rank of the group."""

    def address(self) -> tuple[str, int]:
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, address: str, rank: int, size: int) -> None:
        from torch import distributed

        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)

    def add(self, value: int) -> int:
        import torch
        from torch import distributed

        total = torch.tensor(value)
        distributed.all_reduce(total)
        return int(total)

    def tell(self) -> dict[str, Any]:
        """Where this is, and what access it has."""
        from huggingface_hub import get_token

        token, logins = get_token(), os.environ.get("NETRC")
        login = netrc.netrc(logins).authenticators(WANDB_HOST) if logins else None
        files = [path for name in ("HF_TOKEN_PATH", "NETRC") if (path := os.environ.get(name))]
        return {
            "host": socket.gethostname(),
            "job": os.environ["SLURM_JOB_ID"],
            "token": digest(token) if token else None,
            "key": digest(login[2]) if login else None,
            "modes": [oct(stat.S_IMODE(os.stat(path).st_mode)) for path in files],
            "variables": sorted(os.environ),
        }


def main(folder: Path, size: int) -> None:
    ray.init(
        address="auto",
        runtime_env={"env_vars": dict(os.environ)},
        include_dashboard=False,
        log_to_driver=False,
    )
    nodes = [node for node in ray.nodes() if node["Alive"]]
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes[:size]]
    members = [Member.options(scheduling_strategy=strategy).remote() for strategy in there]
    host, port = ray.get(members[0].address.remote())
    address = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    ray.get([member.join.remote(address, rank, len(members)) for rank, member in enumerate(members)])
    found = {
        "nodes": sorted(node["NodeManagerHostname"] for node in nodes),
        "gcs": ray.get_runtime_context().gcs_address,
        "ray_token": digest(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()),
        "sums": ray.get([member.add.remote(10**rank) for rank, member in enumerate(members)]),
        "members": ray.get([member.tell.remote() for member in members]),
    }
    attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0) + 1
    aside = folder / f".attempt_{attempt}"
    aside.write_text(json.dumps(found))
    aside.rename(folder / f"attempt_{attempt}.json")
    while not (folder / "go").exists():
        ray.get([member.add.remote(1) for member in members])
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
