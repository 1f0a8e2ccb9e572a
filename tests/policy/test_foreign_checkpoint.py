"""A checkpoint from elsewhere may hold pickles inside its shards: loading must not touch them."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from support.models import load_policy, write_hf
from support.ranks import run_ranks


class Touch:
    """Unpickles into a shell command that leaves a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def plant(folder: Path, trace: Path) -> int:
    """Replace every byte object of a torch_dist checkpoint by a pickle that runs a command; how many there were."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    buffer = io.BytesIO()
    torch.save(Touch(str(trace)), buffer)
    shard = folder / "__0_0.distcp"
    planted = 0
    with shard.open("ab") as stream:
        for index, place in metadata.storage_data.items():
            if "_extra_state" in index.fqn:  # each its own: shared bytes would be refused
                place.relative_path, place.offset, place.length = shard.name, stream.tell(), buffer.tell()
                stream.write(buffer.getvalue())
                planted += 1
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return planted


def save(layout: Any, model: Path, out: Path) -> None:
    from nemo_thinkprune.policy.checkpoint import save_torch_dist

    save_torch_dist(load_policy(layout, model), out, iteration=1, with_optimizer=False)


def load(layout: Any, model: Path, out: Path) -> bool:
    from nemo_thinkprune.policy.checkpoint import load_torch_dist

    policy = load_policy(layout, model)
    expected = [p.clone() for p in policy.network.parameters()]
    for parameter in policy.network.parameters():
        parameter.data.zero_()
    load_torch_dist(policy, out, with_optimizer=False)
    return all(torch.equal(a, b) for a, b in zip(expected, policy.network.parameters(), strict=True))


def load_as_megatron_would(layout: Any, model: Path, out: Path) -> None:
    from megatron.core import dist_checkpointing

    policy = load_policy(layout, model)
    with contextlib.suppress(TypeError):  # what the command returns is no saved state
        dist_checkpointing.load({"model": policy.network.sharded_state_dict()}, str(out))


def test_objects_in_shards_are_never_unpickled(tmp_path: Path) -> None:
    model, out, trace = tmp_path / "model", tmp_path / "weights", tmp_path / "trace"
    write_hf("qwen2", model)
    out.mkdir()
    run_ranks(save, model, out, world=1)
    assert plant(out, trace) > 0
    assert run_ranks(load, model, out, world=1) == [True]
    assert not trace.exists()
    run_ranks(load_as_megatron_would, model, out, world=1)
    assert trace.exists()  # the planted command works: it was our loader that did not run it
