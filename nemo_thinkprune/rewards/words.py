"""Answers in words: numbers (`twenty-five`, `three halves`), names, choice letters, runs of letters."""

import re
from fractions import Fraction

from nemo_thinkprune.rewards.normalize import unwrap_text

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
_CHOICE = re.compile(r"\(?([A-J])\)?\.?")
_LABELLED = re.compile(r"(?:\\text\s*\{)?\s*\(([A-J])\)\s*\}?[\s:.,]*(\S.*)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' .,!-]*")
_SHORT_WORDS = frozenset([
    "yes", "no", "true", "false", "odd", "even", "all", "none", "one", "two", "six", "ten", "both",
    "east", "west", "on", "up", "to", "at", "by", "if", "so", "or",
])  # fmt: skip


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


def labelled(text: str) -> tuple[str, str] | None:
    r"""`(C) 25`, `\text{(C)} 25` as (letter, rest), or None."""
    match = _LABELLED.fullmatch(text)
    return (match.group(1), match.group(2)) if match else None


def same_text(answer: str, gold: str) -> bool | None:
    """Words, choice letters and runs of letters; None when this is no matter of text."""
    if _is_choice(gold) or _is_choice(answer):
        return _same_choice(answer, gold)
    letters, others = _letters(answer), _letters(gold)
    if letters and others:
        return _same_letters(letters, others, both_in_text=r"\text" in answer and r"\text" in gold)
    left, right = _words(answer), _words(gold)
    if left is None and right is None:
        return None
    return left is not None and right is not None and left.casefold() == right.casefold()


def _letters(text: str) -> str | None:
    """The letters of an answer that is nothing but two or more letters."""
    bare = unwrap_text(text)
    if re.fullmatch("[A-Za-z](?: [A-Za-z])+", bare):
        bare = bare.replace(" ", "")
    return bare if re.fullmatch("[A-Za-z]{2,}", bare) else None


def _same_letters(answer: str, gold: str, *, both_in_text: bool) -> bool | None:
    """Letters are read in order (`HTT`, `cat`), but for a product of two small ones (`ab`), which is None."""
    if answer == gold:
        return True
    words = {answer.lower(), gold.lower()}
    if both_in_text or words & _SHORT_WORDS or min(map(len, words)) >= 4:
        return len(words) == 1
    return None if all(re.fullmatch("[a-z]{2}", text) for text in (answer, gold)) else False


def _words(text: str) -> str | None:
    r"""The words of a text answer: in \text, or plain letters too long to be a product of variables."""
    bare = unwrap_text(text)
    if not _WORDS.fullmatch(bare) or len(bare) < 2:
        return None
    letters = bare.strip(" .,!'")
    in_text = r"\text" in text and not re.fullmatch(r"[A-Za-z]", letters)
    if in_text or re.search(r"[A-Za-z]{4,}", letters) or letters.lower() in _SHORT_WORDS:
        return " ".join(letters.replace("-", " ").split())
    return None


def _is_choice(text: str) -> bool:
    r"""`\text{(C)}`, `(C)`, `C`: a letter that names a choice (a bare letter only beside another one)."""
    return bool(_CHOICE.fullmatch(unwrap_text(text))) and ("(" in text or r"\text" in text)


def _same_choice(answer: str, gold: str) -> bool:
    left, right = (_CHOICE.fullmatch(unwrap_text(text).upper()) for text in (answer, gold))
    if left and right:
        return left.group(1) == right.group(1)
    pair = labelled(answer if right else gold)
    choice = right or left
    return bool(pair and choice and pair[0] == choice.group(1))
