"""The Slurm that these tests share."""

from support.slurm_fixture import slurm as slurm
