"""The Megatron-Core policy: build, load, log-probs, update, save."""
