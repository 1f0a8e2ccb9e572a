"""nemo-thinkprune: train reasoning models to think shorter without thinking worse."""

__version__ = "0.1.0"
