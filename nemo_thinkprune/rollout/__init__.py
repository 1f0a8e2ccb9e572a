"""Token generation on the policy's own weights."""
