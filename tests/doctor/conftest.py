"""A Slurm of three nodes for the doctor's tests on one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.slurm_lab import SlurmLab, slurm_lab


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    """A Slurm of n1, n2 and n3, which see all of this run's temporary folders."""
    folder = tmp_path_factory.mktemp("slurm") / "lab"
    with slurm_lab(folder, shared=[tmp_path_factory.getbasetemp()]) as lab:
        yield lab
