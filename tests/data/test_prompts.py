"""Prompts: the released texts, the one encoding function, and prompts that do not fit."""

import pytest

from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.data.prompts import encode_prompt, encode_prompts, messages, render_prompt
from nemo_thinkprune.data.tiny_model import build_tokenizer
from nemo_thinkprune.data.tokenizer import load_tokenizer
from nemo_thinkprune.recipe.errors import UserError

PROBLEM = Problem("p", "What is $1+1$?", "2", "here")
RELEASED_SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think></think> and <answer></answer> tags, respectively, i.e., <think> "
    "reasoning process here</think><answer> answer here</answer>."
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("family", "user"),
    [
        ("deepseek", "What is $1+1$? Let's think step by step and output the final answer within \\boxed{}."),
        ("qwen", "What is $1+1$? Please reason step by step, and put your final answer within \\boxed{}."),
    ],
)
def test_released_prompts(family, user):
    chat = messages(PROBLEM, family=family, length_hint=None)
    assert chat == [{"role": "system", "content": RELEASED_SYSTEM_PROMPT}, {"role": "user", "content": user}]
    hinted = messages(PROBLEM, family=family, length_hint=3000)
    sentence = " The output of the assistant should be within 3000 tokens."
    assert hinted == [{"role": "system", "content": RELEASED_SYSTEM_PROMPT + sentence}, chat[1]]


def test_plain_is_the_bare_question():
    assert messages(PROBLEM, family="plain", length_hint=None) == [
        {"role": "user", "content": PROBLEM.question}
    ]


@pytest.mark.parametrize(
    ("family", "hint", "message"),
    [("llama", None, "deepseek, qwen, plain"), ("plain", 64, "length_hint=false")],
)
def test_impossible_prompts_are_refused(family, hint, message):
    with pytest.raises(UserError, match=message):
        messages(PROBLEM, family=family, length_hint=hint)


def test_the_template_ends_where_the_assistant_begins(tokenizer):
    problem = Problem("p", "start 3 ; a +2 ; result ?", "5", "running_total")
    text = render_prompt(tokenizer, problem, family="plain", length_hint=None)
    assert text == "<|im_start|> user\nstart 3 ; a +2 ; result ? <|im_end|>\n<|im_start|> assistant\n"
    ids = encode_prompt(tokenizer, problem, family="plain", length_hint=None)
    assert tokenizer.convert_ids_to_tokens(ids) == text.split()


def test_a_tokenizer_without_template_is_refused(tokenizer):
    class Bare:
        chat_template = None

    with pytest.raises(UserError, match="no chat template"):
        encode_prompt(Bare(), PROBLEM, family="plain", length_hint=None)


def test_long_prompts_are_dropped_and_named(tokenizer):
    questions = {"a": "start 3 ; result ?", "b": "start 3 ; " * 9 + "result ?", "c": "start 4 ; result ?"}
    problems = [Problem(name, text, "3", "s") for name, text in questions.items()]
    # 5 words of the question and 5 of the chat markers: 10 tokens fit, 32 do not.
    options = {"family": "plain", "length_hint": None}
    encoded = encode_prompts(tokenizer, problems, max_input_seq_length=10, **options)
    assert [p.id for p in encoded.problems] == ["a", "c"]
    assert [len(ids) for ids in encoded.prompt_ids] == [10, 10]
    assert encoded.dropped == ["b"]
    with pytest.raises(UserError, match="shortest has 10"):
        encode_prompts(tokenizer, problems, max_input_seq_length=9, **options)


def test_a_missing_tokenizer_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
