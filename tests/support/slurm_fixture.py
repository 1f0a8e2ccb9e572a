"""Slurm for tests: one lab of three nodes for each file that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.slurm_lab import SlurmLab, slurm_lab


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    """A Slurm of n1, n2 and n3, of 4 CPUs each, which see all of this run's temporary folders."""
    folder = tmp_path_factory.mktemp("slurm") / "lab"
    with slurm_lab(folder, shared=[tmp_path_factory.getbasetemp()]) as lab:
        yield lab
