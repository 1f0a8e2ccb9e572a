"""FLOPs of a step are those of the layout that the engine computes."""

from __future__ import annotations

from support.models import small_config

from nemo_thinkprune.costs.flops import Work, forward_flops, generate_flops, train_flops

MODEL = small_config("Qwen2ForCausalLM")


def test_a_shared_prompt_is_counted_once() -> None:
    work = Work(prompts=[5, 5, 7, 7], responses=[4, 1, 3, 2], group_size=2)
    shared = forward_flops(MODEL, work, shared_prompts=True)
    # what sampling computes, and the logits of a prompt's last token for each response and not once
    sampled = generate_flops(MODEL, work).model
    assert (shared.projections, shared.mlp, shared.attention) == (
        sampled.projections,
        sampled.mlp,
        sampled.attention,
    )
    assert shared.lm_head - sampled.lm_head == (4 - 2) * 2 * MODEL.hidden_size * MODEL.vocab_size
    # tokens: 5 + 3 + 0 and 7 + 2 + 1, where each with its own prompt there are 6 more of each, and last ones
    own = forward_flops(MODEL, work)
    assert own.mlp * 18 == shared.mlp * (4 + 1 + 3 + 2 + 24) and own.lm_head == shared.lm_head
    assert train_flops(MODEL, work, shared_prompts=True).model == shared.times(3)


def test_single_responses_share_nothing_but_their_last_token_is_not_fed() -> None:
    work = Work(prompts=[5, 7], responses=[4, 3])
    fed = forward_flops(MODEL, Work(prompts=[5, 7], responses=[3, 2]))
    shared = forward_flops(MODEL, work, shared_prompts=True)
    assert (shared.projections, shared.attention) == (fed.projections, fed.attention)
