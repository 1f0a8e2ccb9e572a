"""Numbers written in English words: `twenty-five`, `one hundred and two`, `three halves`."""

from fractions import Fraction

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_UNITS = {word: index for index, word in enumerate(_SMALL)} | _TENS
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_PARTS |= {"eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100}


def number_in_words(text: str) -> Fraction | None:
    """The value of an English number, or None when `text` is not wholly one."""
    words = text.lower().replace("-", " ").replace(",", " ").split()
    if not words or len(words) > 30:
        return None
    sign = 1
    if words[0] in ("minus", "negative"):
        sign, words = -1, words[1:]
    if len(words) >= 2 and (part := _PARTS.get(words[-1]) or _PARTS.get(words[-1].removesuffix("s"))):
        count = 1 if words[:-1] == ["a"] else _integer(words[:-1])
        return None if count is None else Fraction(sign * count, part)
    value = _integer(words)
    return None if value is None else Fraction(sign * value)


def _integer(words: list[str]) -> int | None:
    total = current = 0
    previous = None
    for index, word in enumerate(words):
        if word == "and" and 0 < index < len(words) - 1 and previous in ("hundred", *_SCALES):
            continue
        if word in _UNITS and (previous in (None, "hundred", *_SCALES) or _follows_tens(previous, word)):
            current += _UNITS[word]
        elif word == "hundred" and 0 < current < 100 and previous != "hundred":
            current *= 100
        elif word in _SCALES and 0 < current < 1000:
            total, current = total + current * _SCALES[word], 0
        else:
            return None
        previous = word
    return total + current if words else None


def _follows_tens(previous: str | None, word: str) -> bool:
    return previous in _TENS and 1 <= _UNITS[word] <= 9
