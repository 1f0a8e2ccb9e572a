"""NeMo-RL's own rollouts, synchronous and sample by sample, with our tokenizer and our environment."""

import pytest
import torch
from support.ray_here import ray_here

from nemo_thinkprune.cluster.names import ENVIRONMENT
from nemo_thinkprune.cluster.responses import ResponseTokenizer
from nemo_thinkprune.data.tiny_model import build_tokenizer
from nemo_thinkprune.data.tokenizer import load_tokenizer, response_text

SETTINGS = {"workers": 1, "deadline_s": 20.0, "memory_mb": 1024}
LIMIT = 8
PROMPT = "start 3 ; a +4 ; result ?"
ANSWERS = {
    "right and as long as may be": ("<think> 3 wait </think> \\boxed{ 7 }", True),
    "right and short": ("\\boxed{ 7 }", True),
    "wrong": ("<think> </think> \\boxed{ 6 }", True),
    "cut before the box": ("<think> 3 wait 3 wait 3 wait 3", False),
    "cut inside the box": ("<think> 3 wait 3 wait </think> \\boxed{ 7", False),
    "cut after the box": ("\\boxed{ 7 } wait wait wait wait wait", False),
    "nothing but the end": ("", True),
}
CORRECT = [1, 1, 0, 0, 0, 0, 0]
CUT = [not finished for _, finished in ANSWERS.values()]
RULES = {"zero": CORRECT, "score_cut_text": [1, 1, 0, 0, 0, 1, 0]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def environments():
    with ray_here():
        from nemo_rl.environments.utils import create_env

        from nemo_thinkprune.cluster.register import register

        register()
        yield {rule: create_env(ENVIRONMENT, SETTINGS | {"truncation": rule}) for rule in RULES}


def ids_of(plain, text):
    return plain(text, add_special_tokens=False).input_ids


def responses(plain):
    return [ids_of(plain, text) + [plain.eos_token_id] * ended for text, ended in ANSWERS.values()]


class CannedGeneration:
    """Answers sample number i with the i-th response, cut where it has no end token, as vLLM reports it.

    A prompt ends in a token of its own, its number, by which a sample that comes alone is known.
    """

    cfg = {"backend": "vllm", "vllm_cfg": {"async_engine": True}}  # noqa: RUF012 - NeMo-RL reads this name

    def __init__(self, plain):
        self._plain, self._responses = plain, responses(plain)
        self._numbers = {ids_of(plain, str(i))[0]: i for i in range(len(self._responses))}

    def generate(self, data, greedy=False):
        from nemo_rl.distributed.batched_data_dict import BatchedDataDict

        lengths = data["input_lengths"]
        rows = [
            ids[:length].tolist() + self._responses[self._numbers[ids[length - 1].item()]]
            for ids, length in zip(data["input_ids"], lengths, strict=True)
        ]
        whole = torch.tensor([len(row) for row in rows])
        generated = whole - lengths
        width = int(whole.max())
        output = torch.tensor([row + [self._plain.pad_token_id] * (width - len(row)) for row in rows])
        ended = torch.tensor([row[-1] == self._plain.eos_token_id for row in rows])
        return BatchedDataDict(
            output_ids=output,
            generation_lengths=generated,
            unpadded_sequence_lengths=whole,
            logprobs=torch.zeros(output.shape),
            truncated=~ended & (generated >= LIMIT),
        )

    async def generate_async(self, data, greedy=False):
        assert len(data["input_lengths"]) == 1
        yield 0, self.generate(data, greedy)


def batch(plain):
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    logs, known = [], []
    for number in range(len(ANSWERS)):
        text = f"{PROMPT} {number}"
        logs.append([{"role": "user", "content": text, "token_ids": torch.tensor(ids_of(plain, text))}])
        known.append({"problem_id": f"p{number}", "question": text, "ground_truth": "7"})
    return BatchedDataDict(
        message_log=logs,
        extra_env_info=known,
        task_name=[ENVIRONMENT] * len(logs),
        stop_strings=[None] * len(logs),
        idx=list(range(len(logs))),
        loss_multiplier=torch.ones(len(logs)),
    )


@pytest.fixture(params=["run_multi_turn_rollout", "run_async_multi_turn_rollout"])
def roll_out(request, environments, plain):
    from nemo_rl.experience import rollouts

    def run(tokenizer, rule):
        return getattr(rollouts, request.param)(
            CannedGeneration(plain),
            batch(plain),
            tokenizer,
            {ENVIRONMENT: environments[rule]},
            max_seq_len=len(ids_of(plain, PROMPT)) + 1 + LIMIT + 1,  # one token of slack
            max_rollout_turns=1,
        )

    return run


def through_ray(tokenizer):
    """As it reaches the actors of the asynchronous and the data-plane trainer."""
    import ray

    return ray.get(ray.put(tokenizer))


@pytest.mark.parametrize("rule", RULES)
def test_rewards_and_cuts_are_right_and_nothing_is_appended(environments, roll_out, plain, rule):
    import ray
    from nemo_rl.data.llm_message_utils import batched_message_log_to_flat_message

    tokenizer = through_ray(ResponseTokenizer(plain, [plain.eos_token_id]))
    final, metrics = roll_out(tokenizer, rule)
    assert final["total_reward"].tolist() == RULES[rule]
    assert final["truncated"].tolist() == CUT
    assert metrics["mean_env_tokens_per_sample"] == 0
    flat, lengths = batched_message_log_to_flat_message(
        final["message_log"], pad_value_dict={"token_ids": tokenizer.pad_token_id}
    )
    assert flat["token_ids"].dtype == torch.int64
    prompts = [log[0]["token_ids"].tolist() for log in final["message_log"]]
    expected = [prompt + ids for prompt, ids in zip(prompts, responses(plain), strict=True)]
    assert [row[:n].tolist() for row, n in zip(flat["token_ids"], lengths, strict=True)] == expected

    rows = sorted(ray.get(environments[rule].drain.remote()), key=lambda row: row["problem_id"])
    assert [row["reward"] for row in rows] == RULES[rule]
    assert [row["stop_reason"] == "limit" for row in rows] == CUT
    assert [row["response_tokens"] for row in rows] == [len(ids) for ids in responses(plain)]
    assert [row["response"] for row in rows] == [
        response_text(plain, ids, finished=not was_cut)
        for ids, was_cut in zip(responses(plain), CUT, strict=True)
    ]


def test_with_the_plain_tokenizer_only_score_cut_text_scores(environments, roll_out, plain):
    import ray

    with pytest.raises((ValueError, RuntimeError), match="thinkprune train RECIPE --engine nemo-rl"):
        roll_out(plain, "zero")
    final, _ = roll_out(plain, "score_cut_text")
    assert final["total_reward"].tolist() == RULES["score_cut_text"]
    ray.get(environments["score_cut_text"].drain.remote())
