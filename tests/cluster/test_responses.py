"""A response keeps its length and its end through everything that NeMo-RL does to it."""

import copy
import json
import pickle

import pytest
import torch

from nemo_thinkprune.cluster.responses import Response, ResponseTokenizer
from nemo_thinkprune.data.tiny_model import build_tokenizer
from nemo_thinkprune.data.tokenizer import load_tokenizer, response_text


def cloud(value):
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(value))


WAYS = [lambda value: pickle.loads(pickle.dumps(value)), copy.copy, copy.deepcopy, cloud]
WAYS += [lambda value, p=p: pickle.loads(pickle.dumps(value, p)) for p in (2, 5)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture
def tokenizer(plain):
    return ResponseTokenizer(plain, [plain.eos_token_id])


@pytest.mark.parametrize("way", WAYS)
def test_a_response_survives_every_copy(way):
    before = {"role": "assistant", "content": Response("so \\boxed{7}", 12, False)}
    after = way([before])[0]["content"]
    assert type(after) is Response and after == "so \\boxed{7}"
    assert (after.tokens, after.finished) == (12, False)


def test_a_response_is_text():
    response = Response("a <b>", 3, True)
    assert (
        json.dumps([response]) == '["a <b>"]'
        and f"{response}!" == "a <b>!"
        and hash(response) == hash("a <b>")
    )
    assert type(str(response)) is str and type(response[:2]) is str


@pytest.mark.parametrize("as_tensor", [True, False])
def test_decoding_knows_length_and_end(plain, tokenizer, as_tensor):
    end = plain.eos_token_id
    words = plain("<think> 3 </think> \\boxed{ 3 }", add_special_tokens=False).input_ids
    sequences = [[*words, end], words, [], [end], [*words[:2], end, *words[2:]]]
    given = [torch.tensor(ids, dtype=torch.int64) for ids in sequences] if as_tensor else sequences
    responses = tokenizer.batch_decode(given, skip_special_tokens=True)
    assert [(r.tokens, r.finished) for r in responses] == [
        (7, True),
        (6, False),
        (0, False),
        (1, True),
        (7, False),
    ]
    assert responses[:4] == ["<think> 3 </think> \\boxed{ 3 }"] * 2 + ["", ""]
    assert plain.eos_token in responses[4]  # an end token elsewhere is part of the text


def test_a_response_reads_as_the_local_engine_reads_it(plain, tokenizer):
    ids = [*plain("<think> wait <|im_start|> 3", add_special_tokens=False).input_ids, plain.eos_token_id]
    assert tokenizer.batch_decode([ids]) == [response_text(plain, ids, finished=True)]


@pytest.mark.parametrize("way", WAYS)
def test_the_tokenizer_survives_every_copy(tokenizer, plain, way):
    again = way(tokenizer)
    ids = plain("result ?", add_special_tokens=False).input_ids
    [response] = again.batch_decode([[*ids, plain.eos_token_id]])
    assert (response, response.finished) == ("result ?", True)
    assert again.pad_token_id == plain.pad_token_id


def test_all_else_is_the_wrapped_tokenizers(tokenizer, plain):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (plain.pad_token_id, plain.eos_token_id)
    assert tokenizer.decode([5, 6]) == plain.decode([5, 6]) and len(tokenizer) == len(plain)
    assert (
        tokenizer("3 ; 4", add_special_tokens=False).input_ids
        == plain("3 ; 4", add_special_tokens=False).input_ids
    )
    messages = [{"role": "user", "content": "3 ; 4"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == plain.apply_chat_template(
        messages, tokenize=False
    )
    with pytest.raises(AttributeError, match="no_such_thing"):
        tokenizer.no_such_thing  # noqa: B018 - the access itself is tested
