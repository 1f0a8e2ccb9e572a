"""Before GPU hours are spent: what would break a run, on this machine and on every node, each with its remedy."""
