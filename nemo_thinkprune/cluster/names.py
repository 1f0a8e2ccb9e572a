"""Names under which NeMo-RL knows our parts."""

ENVIRONMENT = "thinkprune"
VALIDATION_ENVIRONMENT = "thinkprune_validation"
PROCESSOR = "thinkprune"
