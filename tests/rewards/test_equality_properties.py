"""What must hold for all answers, not only for those somebody thought of."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_thinkprune.rewards.equality import equal
from nemo_thinkprune.rewards.guard import MAX_CHARS, too_large
from nemo_thinkprune.rewards.normalize import normalize
from nemo_thinkprune.rewards.rational import rational
from nemo_thinkprune.rewards.score import compare_quickly
from nemo_thinkprune.rewards.words import number_in_words

integers = st.integers(-(10**12), 10**12)
fractions = st.builds(Fraction, st.integers(-2000, 2000), st.integers(1, 60))


def spellings(value: Fraction) -> list[str]:
    sign = "-" if value < 0 else ""
    numerator, denominator = abs(value.numerator), value.denominator
    texts = [
        rf"{sign}\frac{{{numerator}}}{{{denominator}}}",
        rf"\dfrac{{{sign}{numerator}}}{{{denominator}}}",
    ]
    texts += [f"{sign}{numerator}/{denominator}", rf"${sign}\tfrac {{{3 * numerator}}}{{{3 * denominator}}}$"]
    whole, rest = divmod(numerator, denominator)
    if whole and rest:
        texts.append(rf"{sign}{whole}\frac{{{rest}}}{{{denominator}}}")
    if denominator == 1:
        texts += [
            f"{sign}{numerator}",
            f"{sign}00{numerator}",
            f"{sign}{numerator}.0",
            f"{sign}{numerator:,}",
        ]
    if 10**6 % denominator == 0:
        millionths = numerator * (10**6 // denominator)
        texts.append(f"{sign}{millionths // 10**6}.{millionths % 10**6:06d}")
    return texts


@given(st.data(), fractions, fractions)
def test_rational_equality_is_that_of_fractions(data, left, right):
    one, other = data.draw(st.sampled_from(spellings(left))), data.draw(st.sampled_from(spellings(right)))
    assert equal(one, other) is (left == right)


@given(st.data(), fractions)
def test_every_spelling_of_a_rational_is_the_same(data, value):
    one, other = data.draw(st.sampled_from(spellings(value))), data.draw(st.sampled_from(spellings(value)))
    assert equal(one, other) is True


@given(integers, integers)
def test_integers_are_exact(left, right):
    assert equal(str(left), str(right)) is (left == right)


@given(st.lists(fractions, min_size=2, max_size=6), st.randoms())
def test_sets_ignore_order_and_tuples_do_not(values, random):
    shuffled = random.sample(values, len(values))
    texts, others = [str(value) for value in values], [str(value) for value in shuffled]
    assert equal(r"\{" + ", ".join(texts) + r"\}", r"\{" + ", ".join(others) + r"\}") is True
    assert equal(", ".join(texts), ", ".join(others)) is True
    assert equal(f"({', '.join(texts)})", f"({', '.join(others)})") is (values == shuffled)


@given(
    fractions, fractions, st.sampled_from(["()", "[]", "(]", "[)"]), st.sampled_from(["()", "[]", "(]", "[)"])
)
def test_bracket_kinds_matter(start, end, kind, other):
    one, two = f"{kind[0]}{start}, {end}{kind[1]}", f"{other[0]}{start},{end}{other[1]}"
    assert equal(one, two) is (kind == other)


expressions = st.recursive(
    st.sampled_from(["x", "2", "0.5", r"\sqrt{2}", r"\pi", "n", "3", r"\text{yes}", "C", "90^\\circ"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", r" \cdot ", ", "]), inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
        inner.map(lambda text: rf"\{{{text}\}}"),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=6,
)


@given(expressions)
def test_reflexive(text):
    assert equal(text, text) is True
    assert equal(f"$ {text} $.", text) is True


@given(expressions, expressions)
def test_symmetric(left, right):
    assert equal(left, right) == equal(right, left)


@given(expressions)
def test_normalizing_twice_changes_nothing(text):
    assert normalize(normalize(text)) == normalize(text)


@settings(max_examples=300)
@given(st.text(max_size=120), st.text(max_size=40))
def test_never_raises_on_any_text(answer, gold):
    compare_quickly(answer, gold)


symbols = st.sampled_from(
    [
        *r"\{}()[]^_,;=<>!|&%$.:'-+*/ 0123xyze",
        r"\frac",
        r"\sqrt",
        r"\text{",
        r"\pm",
        r"\begin{pmatrix}",
        r"\cup",
    ]
)


@settings(max_examples=500)
@given(st.lists(symbols, max_size=40).map("".join), st.lists(symbols, max_size=12).map("".join))
def test_never_raises_on_broken_latex(answer, gold):
    compare_quickly(answer, gold)
    compare_quickly(answer, "25")


@given(st.lists(symbols, max_size=30).map("".join))
def test_what_the_guard_lets_through_has_a_bounded_value(text):
    if not too_large(text):
        value = rational(normalize(text))
        assert value is None or value.numerator.bit_length() + value.denominator.bit_length() < 200_000


@given(st.integers(MAX_CHARS + 1, 10**6))
def test_long_answers_are_refused(length):
    assert too_large("1" * length)


ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
ONES += ["seventeen", "eighteen", "nineteen"]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    if number < 1000:
        return f"{ONES[number // 100]} hundred" + (f" and {in_words(number % 100)}" if number % 100 else "")
    return f"{in_words(number // 1000)} thousand" + (f" {in_words(number % 1000)}" if number % 1000 else "")


@given(st.integers(0, 999_999))
def test_numbers_in_words(number):
    assert number_in_words(in_words(number)) == number
    assert number_in_words("minus " + in_words(number)) == -number
