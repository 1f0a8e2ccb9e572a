"""Sections `grpo` and `loss_fn`: what is sampled, how it is judged against its group, and the objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemo_thinkprune.recipe.base import (
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    absent,
)


class AdvEstimator(Section):
    """Advantage estimator; its two flags and those of `grpo` are one setting and follow each other."""

    name: Literal["grpo", "gdpo", "reinforce_plus_plus"] = "grpo"
    """Which estimator."""
    normalize_rewards: bool
    """Divide by the standard deviation of the group.  Follows grpo.normalize_rewards."""
    use_leave_one_out_baseline: bool
    """Baseline without the response itself.  Follows grpo.use_leave_one_out_baseline."""
    minus_baseline: bool = True
    """Only for reinforce_plus_plus: subtract the mean of the prompt."""


class RewardShaping(Section):
    """NeMo-RL's reward shaping by length; ours is thinkprune.truncation and thinkprune.length_reward."""

    enabled: bool = False
    """Switch."""
    overlong_buffer_length: NonNegativeInt = 128
    """Tokens before the maximum in which the penalty grows."""
    overlong_buffer_penalty: FiniteFloat = 1.0
    """Largest penalty."""
    max_response_length: PositiveInt
    """Maximum length in tokens.  Follows policy.max_total_sequence_length."""
    stop_properly_penalty_coef: FiniteFloat | None = None
    """Factor on the reward of a truncated response; null: none."""


class RewardScaling(Section):
    """Clamp rewards to the source interval and map it linearly to the target interval."""

    enabled: bool = False
    """Switch."""
    source_min: FiniteFloat = 0.0
    """Lower end before."""
    source_max: FiniteFloat = 1.0
    """Upper end before."""
    target_min: FiniteFloat = 0.0
    """Lower end after."""
    target_max: FiniteFloat = 1.0
    """Upper end after."""


class AsyncGrpo(Section):
    """Asynchronous training; NeMo-RL only."""

    enabled: bool = False
    """Switch."""
    max_trajectory_age_steps: NonNegativeInt = 1
    """Oldest policy, in steps, whose responses are still trained on."""
    in_flight_weight_updates: bool = False
    """Swap weights without waiting for running generations."""
    recompute_kv_cache_after_weight_updates: bool = False
    """Recompute the KV cache after such a swap."""


class Grpo(Section):
    """Section `grpo`: batch sizes, advantage, validation."""

    num_prompts_per_step: PositiveInt = 128
    """Prompts in a step."""
    num_generations_per_prompt: PositiveInt = 16
    """Responses to each prompt: the size of a group."""
    max_rollout_turns: PositiveInt = 1
    """Turns of a conversation; mathematics has one."""
    max_num_epochs: PositiveInt = 10
    """Passes over the training problems; an incomplete last batch of a pass is dropped."""
    max_num_steps: PositiveInt = 1_000_000
    """End after this many steps even if epochs remain."""
    normalize_rewards: bool
    """Divide the advantage by the standard deviation of its group.  Default true."""
    use_leave_one_out_baseline: bool
    """Baseline without the response itself.  Default false: the mean of the whole group, as in the paper."""
    advantage_clip_low: FiniteFloat | None = None
    """Lower bound on advantages; null: none."""
    advantage_clip_high: FiniteFloat | None = None
    """Upper bound on advantages; null: none."""
    val_period: NonNegativeInt = 20
    """Validate every so many steps; 0: never."""
    val_batch_size: PositiveInt | None = 256
    """Responses generated together in NeMo-RL's validation, null: all; changes speed and memory only."""
    val_at_start: bool = True
    """Validate before the first step: the baseline of the selection rule."""
    val_at_end: bool = True
    """Validate after the last step, so that the last checkpoint can be selected."""
    max_val_samples: PositiveInt | None = None
    """At most this many validation problems, each answered thinkprune.validation.samples times; null: all.

    Any number: NeMo-RL, which counts responses in whole batches under this name, is handed what covers them all.
    """
    seed: NonNegativeInt = 42
    """Seed of everything random."""
    skip_reference_policy_logprobs_calculation: bool | None = absent()
    """Do without reference log-probabilities; only possible without a KL term."""
    async_grpo: AsyncGrpo = Field(default_factory=AsyncGrpo)
    """Asynchronous training."""
    overlong_filtering: bool = False
    """Leave truncated responses out of the loss; must stay false: ThinkPrune learns from exactly those."""
    use_dynamic_sampling: bool = False
    """Replace groups whose rewards are all equal."""
    dynamic_sampling_max_gen_batches: PositiveInt = 10
    """Most generation batches for one step of dynamic sampling."""
    batch_multiplier: PositiveFloat = 1.0
    """Prompts generated per prompt trained on; above 1 only with dynamic sampling."""
    reward_shaping: RewardShaping
    """Reward shaping by length."""
    reward_scaling: RewardScaling = Field(default_factory=RewardScaling)
    """Linear map of rewards."""
    calculate_advantages_on_gpu: bool | None = absent()
    """Where advantages are computed; changes speed only."""
    seq_logprob_error_threshold: PositiveFloat | None = None
    """Mask responses whose sampler and trainer log-probabilities differ more than this; null: none."""
    invalid_tool_call_advantage: FiniteFloat | None = None
    """Advantage given to invalid tool calls; null: none."""
    malformed_thinking_advantage: FiniteFloat | None = None
    """Advantage given to malformed think tags; null: none."""
    adv_estimator: AdvEstimator
    """Advantage estimator."""


class LossFn(Section):
    """Section `loss_fn`: the clipped policy gradient loss and its KL term."""

    disable_ppo_ratio: bool = False
    """REINFORCE surrogate without ratio."""
    token_level_loss: bool = True
    """Mean over all response tokens of the step; false: mean over responses of their token means."""
    sequence_level_importance_ratios: bool = False
    """One ratio for a response (GSPO) instead of one for each token."""
    ratio_clip_min: NonNegativeFloat = 0.2
    """Lower clip: ratios below 1 - this are cut."""
    ratio_clip_max: NonNegativeFloat = 0.2
    """Upper clip: ratios above 1 + this are cut."""
    ratio_clip_c: PositiveFloat | None = None
    """Dual clip for negative advantages, greater than 1; null: none."""
    reference_policy_kl_penalty: FiniteFloat = 0.001
    """Weight of the KL term; positive keeps the policy near the reference, 0 drops it."""
    reference_policy_kl_type: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence; k3 is verl's low_var_kl."""
    kl_input_clamp_value: PositiveFloat | None = 20.0
    """Bound on the log ratio that enters the estimator; null: none."""
    kl_output_clamp_value: PositiveFloat | None = 10.0
    """Bound on the estimate of a token; null: none."""
    use_kl_in_reward: bool = False
    """Put the KL term into the reward instead of the loss."""
    use_importance_sampling_correction: bool = False
    """Weigh tokens by trainer over sampler probability."""
    truncated_importance_sampling_type: Literal["tis", "icepop", "seq-mask-tis"] | None = None
    """How those weights are truncated; null: not."""
    truncated_importance_sampling_ratio: PositiveFloat | None = None
    """Upper bound of those weights."""
    truncated_importance_sampling_ratio_min: NonNegativeFloat | None = None
    """Lower bound of those weights."""
    use_on_policy_kl_approximation: bool = False
    """Importance-weight the KL estimate."""
    force_on_policy_ratio: bool = False
    """Take the ratio as exactly 1; needs one update per rollout batch."""
    use_cispo: bool = False
    """CISPO loss."""
    positive_example_nll_weight: NonNegativeFloat = 0.0
    """Weight of VAPO's likelihood term on correct responses."""
