"""`thinkprune bench`: real steps, measured by phase, and the comparison of two such measurements."""
