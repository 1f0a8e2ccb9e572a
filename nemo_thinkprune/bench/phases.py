"""The phases of a step under one set of names, whichever engine ran it.

A step is measured from the choice of its prompts to the last byte of its records.  Its phases do not overlap and add
up to it: what no phase claims is "other".  Writing a checkpoint stands beside the step, since how often one is
written is a choice of the recipe.  Validation is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ROLLOUT, SCORING, UPDATE, REFIT, RECORDS, OTHER = "rollout", "scoring", "update", "refit", "records", "other"
OLD, REFERENCE, LOGPROBS, WAIT = "old_logprobs", "reference_logprobs", "logprobs", "wait"
CHECKPOINT = "checkpoint"
ROLLOUT_AND_SCORING = "rollout_and_scoring"

LABELS: Mapping[str, str] = MappingProxyType(
    {
        ROLLOUT: "rollout",
        SCORING: "scoring",
        ROLLOUT_AND_SCORING: "rollout and scoring",
        WAIT: "wait for rollouts",
        OLD: "old log-probs",
        REFERENCE: "reference log-probs",
        LOGPROBS: "old and reference log-probs",
        UPDATE: "update",
        REFIT: "refit",
        RECORDS: "records",
        OTHER: "other",
        CHECKPOINT: "checkpoint",
    }
)
"""Every phase there is, in the order of a step, with its name for people."""

LOCAL: Mapping[str, str] = MappingProxyType(
    {
        "generate_s": ROLLOUT,
        "score_s": SCORING,
        "old_logprobs_s": OLD,
        "reference_logprobs_s": REFERENCE,
        "update_s": UPDATE,
        "refit_s": REFIT,
        "record_s": RECORDS,
    }
)
"""Timers of the local engine (training/loop.py)."""

NEMO_RL: Mapping[str, str] = MappingProxyType(
    {
        "generate_s": ROLLOUT_AND_SCORING,
        "wait_s": WAIT,
        "refit_s": REFIT,
        "sync_s": REFIT,
        "logprobs_s": LOGPROBS,
        "update_s": UPDATE,
    }
)
"""Timers of NeMo-RL (cluster/step_metrics.py): scoring runs inside generation, both log-probs under one timer."""

PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {ROLLOUT_AND_SCORING: (ROLLOUT, SCORING), LOGPROBS: (OLD, REFERENCE), OTHER: (OTHER, RECORDS)}
)
"""What one engine measures as one phase and the other as several."""
