"""Show a run."""
