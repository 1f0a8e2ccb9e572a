"""The objective in plain Python loops over responses and tokens, to check the packed torch code against."""

import math
from dataclasses import dataclass


@dataclass
class Response:
    """One response as lists of floats; `keep` tells which tokens count."""

    logprobs: list
    old: list
    ref: list
    advantage: float
    keep: list
    positive: bool = False


def kl_value(kind, logp, ref, *, input_clamp=20.0, output_clamp=10.0):
    d = ref - logp
    d = max(-input_clamp, min(input_clamp, d))
    value = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - 1 - d}[kind]
    return max(-output_clamp, min(output_clamp, value))


def token_loss(response, t, *, low, high, dual, coefficient, kind):
    ratio = math.exp(response.logprobs[t] - response.old[t])
    advantage = response.advantage
    value = min(ratio * advantage, max(1 - low, min(1 + high, ratio)) * advantage)
    if advantage < 0 and dual is not None:
        value = max(value, dual * advantage)
    return -value + coefficient * kl_value(kind, response.logprobs[t], response.ref[t])


def objective(
    responses,
    *,
    low=0.2,
    high=0.2,
    dual=None,
    coefficient=0.0,
    kind="k3",
    aggregate="token",
    constant=None,
    nll=0.0,
):
    sums, counts, positive_sum, positive_count = [], [], 0.0, 0
    for response in responses:
        kept = [t for t in range(len(response.logprobs)) if response.keep[t]]
        options = {"low": low, "high": high, "dual": dual, "coefficient": coefficient, "kind": kind}
        sums.append(sum(token_loss(response, t, **options) for t in kept))
        counts.append(len(kept))
        if response.positive:
            positive_sum -= sum(response.logprobs[t] for t in kept)
            positive_count += len(kept)
    likelihood = nll * positive_sum / max(positive_count, 1)
    if aggregate == "token":
        return sum(sums) / sum(counts) + likelihood
    if aggregate == "sequence":
        return sum(s / max(c, 1) for s, c in zip(sums, counts, strict=True)) / len(responses) + likelihood
    return sum(s / constant for s in sums) / len(responses) + likelihood


def group_advantages(rewards, *, normalize=True, leave_one_out=False):
    result = []
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i] if leave_one_out else list(rewards)
        mean = sum(others) / len(others)
        variance = sum((r - mean) ** 2 for r in others) / (len(others) - 1) if len(others) > 1 else 0.0
        scale = math.sqrt(variance) + 1e-6 if normalize and max(others) != min(others) else 1.0
        result.append((reward - mean) / scale)
    return result


def gae(rewards, values, *, gamma, lam, finished):
    after = 0.0 if finished else values[-1]
    following = [*values[1:], after]
    deltas = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, following, strict=True)]
    n = len(deltas)
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]
