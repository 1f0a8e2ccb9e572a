"""The bytes of Megatron's torch_dist checkpoints, read and written without torch."""
