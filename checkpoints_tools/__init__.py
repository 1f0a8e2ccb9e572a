"""Checkpoint tools: the weight map and byte formats. Nothing in this package imports torch."""
