"""The cluster engine: NeMo-RL's own setup and trainers, with our environment, data and records plugged in."""
