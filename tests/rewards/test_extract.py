import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_thinkprune.rewards.extract import extract_answer

CASES = {
    "plain": (r"so \boxed{5}", "5"),
    "nested braces": (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    "escaped braces": (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    "space before the brace": (r"\boxed {7}", "7"),
    "line break before the brace": ("\\boxed\n{7}", "7"),
    "fbox": (r"\fbox{9}", "9"),
    "no brace": (r"\boxed 25.", "25"),
    "no brace, no space": (r"$\boxed5$ ok", "5"),
    "no brace, before the end token": ("\\boxed 25<|im_end|>", "25"),
    "no brace, fraction": (r"$\boxed \frac{1}{2}$", r"\frac{1}{2}"),
    "no brace, choice": (r"\boxed C", "C"),
    "full width": ("＼boxed｛２５｝", "25"),
    "doubled backslash": (r"\\boxed{5}", "5"),
    "after a line break command": (r"\\\boxed{5}", "5"),
    "last wins": (r"\boxed{1} but no, \boxed{2}", "2"),
    "code in the box": (r"\boxed{__import__('os').system('true')}", "__import__('os').system('true')"),
    "box in a box": (r"\boxed{\boxed{5}}", "5"),
    "outer box counts": (r"\boxed{\fbox{5} + 1}", "{5} + 1"),
    "closed box in an unclosed one": (r"\boxed{3 + \boxed{5}", "5"),
    "unclosed": (r"\boxed{5", None),
    "unclosed after a closed one": (r"\boxed{5} then \boxed{7", None),
    "unclosed, no brace": (r"\boxed \frac{1}{2", None),
    "no box": ("The answer is 25.", None),
    "answer in words without a box": ("The answer is twenty-five.", None),
    "empty text": ("", None),
    "empty box": (r"\boxed{}", None),
    "empty box hides nothing": (r"\boxed{4}, written within \boxed{}.", "4"),
    "blank box": (r"\boxed{   }", None),
    "prose about the command": (r"\boxed{4} as the \boxed command asks", "4"),
    "other command": (r"\boxedmath{5}", None),
    "after the last tag": (r"<think>\boxed{1}</think>\boxed{2}", "2"),
    "only in the thought": (r"<think>\boxed{1}</think> done", None),
    "two tags": (r"\boxed{1}</think>\boxed{2}</think>\boxed{3}", "3"),
    "tag without its opening": (r"\boxed{1} hm </think> \boxed{2}", "2"),
    "no tag": (r"<think> hm \boxed{1}", "1"),
    "adjacent": (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", "1, 2, 3"),
    "adjacent, math delimiters": (r"\(\boxed{1}\) ; \(\boxed{2}\)", "1, 2"),
    "adjacent, text and": (r"\boxed{1} \text{ and } \boxed{2}", "1, 2"),
    "adjacent, touching": (r"\boxed{1}\boxed{2}", "1, 2"),
    "adjacent, the same again": (r"\boxed{5} \boxed{5}", "5"),
    "adjacent, with one apart": (r"\boxed{0} so \boxed{1}, \boxed{2}", "1, 2"),
    "words between": (r"\boxed{1} therefore \boxed{2}", "2"),
    "equals between": (r"\boxed{1} = \boxed{2}", "2"),
    "blank line between": ("\\boxed{1}\n\n\\boxed{2}", "2"),
    "spaces become one": ("\\boxed{ 1 +\n  2 }", "1 + 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cases(name):
    response, answer = CASES[name]
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{" * 140_000,
        r"\boxed{" * 140_000 + "}" * 140_000,
        r"\boxed(" * 140_000,
        r"\boxed " * 140_000,
        r"\boxed{1}," * 100_000,
        "{" * 10**6,
        "\\" * 10**6,
        "</think>" * 125_000,
        r"\boxed{ " + " " * 10**6 + "}",
        "２" * 10**6,
    ],
    ids=lambda text: text[:9],
)
def test_a_million_characters_take_one_pass(response):
    # A quadratic scan would take hours, so that this ends at all is the test.
    extract_answer(response)


def test_the_answer_is_found_at_the_end_of_a_million_characters():
    assert extract_answer("{wait} " * 150_000 + r"\boxed{5}") == "5"


contents = st.recursive(
    st.text(alphabet="0123456789+-abcxyz/,.()", min_size=1, max_size=8),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "x{" + "".join(parts) + "}"),
    max_leaves=8,
)
noise = st.text(alphabet="abc {}$\\.,\n", max_size=60).filter(lambda text: "box" not in text)


@given(
    noise,
    contents,
    st.text(alphabet="abc $.,\n}", max_size=20),
    st.sampled_from([r"\boxed", r"\fbox", r"\boxed "]),
)
def test_extraction_inverts_boxing(before, content, after, command):
    # A backslash at the end of the noise would escape nothing but doubles the command's own, which is allowed.
    assert extract_answer(f"{before} {command}{{{content}}}{after}") == content


@given(noise, contents, st.integers(min_value=1, max_value=30))
def test_a_box_across_the_cut_is_no_answer(before, content, kept):
    box = rf"\boxed{{{content}}}"
    cut = (before + " " + box)[: len(before) + 1 + min(len(r"\boxed{") + kept, len(box) - 1)]
    assert extract_answer(cut) is None


@given(st.text(max_size=300))
def test_never_raises(text):
    extract_answer(text)
    extract_answer(r"\boxed{" + text)


def test_blanks_in_a_box_are_not_its_content():
    blanks = " " * 10**6
    assert extract_answer(r"\boxed{" + blanks + "25}") == "25"
    assert extract_answer(r"\boxed{" + blanks + "25" + blanks + "}") == "25"
    assert extract_answer(r"\boxed{7} and so \boxed{" + blanks + "}") == "7"
