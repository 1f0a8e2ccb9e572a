"""The error this package raises on bad input."""


class CheckpointError(ValueError):
    """A model folder or checkpoint cannot be used; the message says what is wrong and what would help."""
