from nemo_thinkprune.reporting import thoughts


def row(problem, words, *, reason="correct", cut=False, tokens=None, sample=0):
    text = " ".join(f"w{i}" for i in range(words))
    return {
        "problem_id": problem,
        "sample": sample,
        "prompt": f"question {problem}",
        "response": text,
        "response_tokens": words + 1 if tokens is None else tokens,
        "stop_reason": "limit" if cut else "eos",
        "reason": reason,
        "gold": "7",
    }


def test_words_that_are_tokens_are_cut_exactly():
    text = "a  bb\nccc dddd"
    assert thoughts.cut_position(text, tokens=5, limit=2) == (5, True)  # four words and a hidden end token
    assert thoughts.cut_position(text, tokens=4, limit=3) == (9, True)


def test_other_tokens_are_cut_at_the_proportional_word():
    assert thoughts.cut_position("aaaa bbbb cccc dddd", tokens=40, limit=20) == (14, False)


def test_a_longer_response_is_split_where_the_limit_falls():
    found = thoughts.thought(row("a", 10), limit=4)
    assert found.kept == "w0 w1 w2 w3" and found.lost.split()[0] == "w4"
    assert found.cut == "a limit of 4 cuts here"
    assert thoughts.thought(row("a", 10, tokens=30), limit=4).cut == "a limit of 4 cuts about here"


def test_a_response_within_the_limit_has_no_cut():
    found = thoughts.thought(row("a", 3), limit=4)
    assert (found.cut, found.lost) == ("", "")


def test_a_truncated_response_says_where_generation_stopped():
    found = thoughts.thought(row("a", 10, cut=True, tokens=10, reason="truncated"), limit=4)
    assert found.cut == "cut by the limit after 10 tokens" and found.lost == "" and not found.correct


def test_pairs_are_chosen_by_rule_and_show_losses_too():
    before = [row(str(i), 10 * (i + 1)) for i in range(10)] + [row("lost", 9), row("won", 9, reason="wrong")]
    after = [row(str(i), 10) for i in range(10)] + [row("lost", 5, reason="wrong"), row("won", 5)]
    pairs = thoughts.choose_pairs(before, after, limit=None)
    # savings 0, 10, ..., 90, and median and 90th percentile of ten are the problems 5 and 9
    assert [(p.why.split(" ")[0], p.before.tokens) for p in pairs] == [
        ("typical", 61), ("large", 101), ("right", 10), ("wrong", 10),
    ]  # fmt: skip
    assert pairs[2].before.correct and not pairs[2].after.correct
    assert pairs[3].after.correct and not pairs[3].before.correct


def test_the_lowest_sample_stands_for_its_problem():
    before = [row("a", 9, sample=1), row("a", 5, sample=0)]
    assert thoughts.choose_pairs(before, [row("a", 3)], limit=None)[0].before.tokens == 6


def test_without_shared_problems_nothing_is_paired_as_one_prompt():
    assert thoughts.choose_pairs([row("a", 3)], [row("b", 3)], limit=None) == []
    (pair,) = thoughts.unrelated_pairs([row("a", 3)], [row("b", 3)], limit=None)
    assert not pair.same_prompt and pair.after.prompt == "question b"


def test_both_wrong_is_still_shown():
    pairs = thoughts.choose_pairs([row("a", 3, reason="wrong")], [row("a", 3, reason="wrong")], limit=None)
    assert [p.why for p in pairs] == ["both wrong"]


def test_enormous_responses_lose_their_middle():
    found = thoughts.thought(row("a", 20_000), limit=None)
    assert len(found.kept) < 9000 and "characters left out" in found.kept
