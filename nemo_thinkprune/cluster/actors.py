"""The environments as Ray actors, by the names that NeMo-RL is given; imported in its processes only."""

import ray

from nemo_thinkprune.cluster import environment

# Made apart from the classes, which stay plain: importable without Ray, and found by name in the actor.
ThinkPruneEnvironment = ray.remote(environment.ThinkPruneEnvironment)
ThinkPruneValidationEnvironment = ray.remote(environment.ThinkPruneValidationEnvironment)
