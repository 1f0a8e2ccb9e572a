"""A checkpoint made ready for the hub: exported, with manifest and model card, and uploaded."""
