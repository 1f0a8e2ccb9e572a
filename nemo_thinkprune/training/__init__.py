"""The single-machine engine: ranks, steps, checkpoints, survival."""
