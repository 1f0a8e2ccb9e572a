r"""Splits a unit from a value: `864 \text{ inches}^2`, `\$18.90`, `90\degree`, `15 cm^2`, `5 \text{ million}`.

A unit that only one side writes is ignored, as the question named it; two units that differ make two answers
differ. A word that is no unit of measurement counts as one only where it reads like a thing that is counted
(`ways`, `distinct real solutions`). Whatever else follows a number (`5 \text{ at most}`, `5 squared`) is left
in the value, so that it is never silently dropped.
"""

import re
from fractions import Fraction

from nemo_thinkprune.rewards.rational import rational

_SAME = {
    "degree": "degree degrees deg", "dollar": "dollar dollars usd bucks", "cent": "cent cents",
    "pound sterling": "gbp", "euro": "euro euros eur", "yen": "yen", "rupee": "rupee rupees rs",
    "millimeter": "mm millimeter millimeters millimetre millimetres",
    "centimeter": "cm centimeter centimeters centimetre centimetres", "decimeter": "dm",
    "meter": "m meter meters metre metres", "kilometer": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches", "foot": "ft foot feet", "yard": "yd yard yards", "mile": "mi mile miles",
    "second": "s sec secs second seconds", "minute": "min mins minute minutes", "hour": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "year years yr yrs",
    "gram": "g gram grams", "kilogram": "kg kilogram kilograms", "milligram": "mg", "ton": "ton tons",
    "pound": "lb lbs pound pounds", "ounce": "oz ounce ounces", "liter": "l liter liters litre litres",
    "milliliter": "ml milliliter milliliters", "gallon": "gallon gallons gal", "acre": "acre acres",
    "mile per hour": "mph", "kilometer per hour": "kmh kph", "radian": "rad radian radians",
    "unit": "unit units", "am": "am", "pm": "pm",
}  # fmt: skip
_CANONICAL = {name: unit for unit, names in _SAME.items() for name in names.split()}
_SCALES = {"c": "degree celsius", "celsius": "degree celsius"}
_SCALES |= {"f": "degree fahrenheit", "fahrenheit": "degree fahrenheit"}
_CURRENCY = {r"\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
_MULTIPLIERS = {
    "dozen": 12, "dozens": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
_PARTS = {"halves": 2, "thirds": 3, "quarters": 4, "fourths": 4, "fifths": 5, "sixths": 6, "sevenths": 7}
_PARTS |= {"eighths": 8, "ninths": 9, "tenths": 10, "hundredths": 100, "thousandths": 1000}
# Words that change what is said, or count, although they may look like a plural.
_NEVER_A_THING = frozenset([
    "or", "and", "not", "if", "for", "where", "when", "except", "excluding", "excludes", "but", "than",
    "then", "either", "neither", "nor", "is", "are", "was", "be", "mod", "plus", "minus", "times", "over",
    "under", "divides", "divided", "multiplied", "less", "more", "most", "least", "fewer", "greater",
    "larger", "smaller", "at", "about", "approximately", "almost", "nearly", "exactly", "only", "unless",
    "without", "above", "below", "before", "after", "up", "down", "squared", "cubed", "factorials",
    "negative", "negatives", "positive", "wrong", "incorrect", "false", "true", "no", "none", "never",
    "does", "doesn", "isn", "half", "double", "triple", "twice", "percents", "power", "root", "logs",
    "base", "this", "thus", "yes", "always", "has", "as", "its", "his", "versus", "tens", "hundreds",
    "thousands", "millions", "billions", "trillions", "ones", "twos", "one", "two", "three", "four",
    "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
])  # fmt: skip
_THINGS = frozenset([
    "people", "men", "women", "children", "mice", "geese", "feet", "teeth", "dice", "fish", "sheep",
    "yuan", "won", "baht", "hertz",
])  # fmt: skip
_LINKS = frozenset(["of", "per", "in", "each"])

_POWER = r"(?:\s*\^\s*(?:\{\s*(\d)\s*\}|(\d)))?"
_IN_TEXT = re.compile(r"^(?P<value>.*[\d)}\]%a-zA-Z].*?)\s*\\text\s*\{(?P<unit>[^{}]*)\}" + _POWER + "$")
_DEGREE = re.compile(r"^(?P<value>.*?)\s*\\degree\s*(?:(?:\\text\s*\{)?\s*(?P<scale>[CF])\s*\}?)?$")
_PLAIN = re.compile(
    r"^(?P<value>.*[\d)}])\s*(?<![_^])(?P<unit>[A-Za-z]+(?:[ /][A-Za-z]+){0,3})\.?" + _POWER + "$"
)
_COUNTED = re.compile(
    r"(?P<number>(?:[-+\d.,/\s]|\\frac\{\d+\}\{\d+\})*[\d}])"
    r"(?:\s*\\text\s*\{(?P<text>[A-Za-z ]+)\}|\s+(?P<plain>[A-Za-z ]+))"
)
_TRIGONOMETRIC = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")


def split_unit(text: str) -> tuple[str, str | None]:
    """`text` (normalized) without its unit, and the unit's canonical name, None where there is no unit.

    The name of a counted thing begins with "~". A multiplier (`5 million`) becomes part of the value.
    """
    for symbol, unit in _CURRENCY.items():
        if text.startswith(symbol):
            return _multiplied(text[len(symbol) :].strip()), unit
        if text.endswith(symbol):
            return text[: -len(symbol)].strip(), unit
        if text.startswith("-" + symbol):
            return "-" + _multiplied(text[len(symbol) + 1 :].strip()), unit
    text = _multiplied(text)
    match = _DEGREE.match(text)
    if match and not _TRIGONOMETRIC.search(match.group("value")):
        return match.group("value"), _SCALES[match.group("scale").lower()] if match.group(
            "scale"
        ) else "degree"
    for pattern, is_unit in ((_IN_TEXT, _is_beside_number), (_PLAIN, _is_written_out)):
        match = pattern.match(text)
        name = _unit(match.group("unit")) if match else None
        if match and name is not None and is_unit(match, not name.startswith("~")):
            return match.group("value").strip(), _with_power(name, match)
    return text, None


def units_differ(left: str | None, right: str | None) -> bool:
    """Whether both sides name a unit, or a counted thing, and not the same. Plain degrees fit both scales."""
    if not left or not right or left == right:
        return False
    return not ("degree" in (left, right) and left.startswith("degree") and right.startswith("degree"))


def _multiplied(text: str) -> str:
    r"""`text` with the words that multiply its number worked in: `5 \text{ million}`, `3 halves`."""
    match = _COUNTED.fullmatch(text)
    number = rational(match.group("number").strip()) if match else None
    if match is None or number is None:
        return text
    words = (match.group("text") or match.group("plain")).split()
    factor = Fraction(1)
    if words and words[0].lower() in _PARTS:
        factor = Fraction(1, _PARTS[words.pop(0).lower()])
    while words and words[0].lower() in _MULTIPLIERS:
        factor *= _MULTIPLIERS[words.pop(0).lower()]
    if factor == 1:
        return text
    value = number * factor
    written = (
        str(value.numerator)
        if value.denominator == 1
        else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    )
    return rf"{written} \text{{{' '.join(words)}}}" if words else written


def _is_beside_number(match: re.Match[str], known: bool) -> bool:
    return known or re.search(r"\d", match.group("value")) is not None


def _is_written_out(match: re.Match[str], known: bool) -> bool:
    """Whether letters after a number are a word and not a product of variables (`3abc`, `2 m`)."""
    written = match.group("unit")
    if known:
        return len(written) >= 2
    spaced = match.string[match.end("value")].isspace()
    words = re.split("[ /]", written.lower())
    return spaced and all(len(word) >= 4 or word in _LINKS for word in words)


def _with_power(name: str, match: re.Match[str]) -> str:
    power = match.group(match.lastindex or 0) if match.lastindex and match.lastindex > 2 else ""
    return f"{name}^{power}" if power and power != "1" else name


def _unit(written: str) -> str | None:
    """The canonical name of a unit, "~" and the words of a counted thing, None for what is not understood."""
    text = written.strip().strip("().").strip().lower()
    if not text or not re.fullmatch(r"[a-z][a-z .,/()-]*", text):
        return None
    words = text.replace(".", " ").split()
    power = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}.get(words[0], "")
    words = words[1:] if power else words
    if len(words) == 1 and words[0] in _CANONICAL:
        return _CANONICAL[words[0]] + power
    if len(words) == 2 and _CANONICAL.get(words[0]) == "degree" and words[1] in _SCALES:
        return _SCALES[words[1]]
    speed = [part.strip() for part in re.split(r"/| per ", " ".join(words))]
    if len(speed) == 2 and all(part in _CANONICAL for part in speed):
        return f"{_CANONICAL[speed[0]]} per {_CANONICAL[speed[1]]}"
    return "~" + " ".join(word.removesuffix("s") for word in words) + power if _is_thing(words) else None


def _is_thing(words: list[str]) -> bool:
    """Whether words read like what is counted: a plural (before `of`, `per`, `in`), and no word that judges."""
    if len(words) > 5 or _NEVER_A_THING & set(words) or not all(word.isalpha() for word in words):
        return False
    head = words
    for index, word in enumerate(words):
        if word in _LINKS:
            head = words[:index]
            break
    return bool(head) and (head[-1] in _THINGS or bool(re.fullmatch(r"[a-z]{2,}[a-rt-z]s", head[-1])))
