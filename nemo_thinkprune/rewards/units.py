r"""Splits a unit from a value: `864 \text{ inches}^2`, `\$18.90`, `90\degree`, `15 cm^2`.

A unit that only one side writes is ignored, as the question named it. Two units of measurement that differ
make two answers differ; words that measure nothing (`ways`, `apples`) never do.
"""

import re

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
}  # fmt: skip
_CANONICAL = {name: unit for unit, names in _SAME.items() for name in names.split()}
_CURRENCY = {r"\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
_NOT_A_UNIT = frozenset(
    ["or", "and", "not", "if", "for", "where", "when", "except", "but", "than", "either", "is", "are", "mod"]
)

_POWER = r"(?:\s*\^\s*(?:\{\s*(\d)\s*\}|(\d)))?"
_IN_TEXT = re.compile(r"^(?P<value>.*[\d)}\]%a-zA-Z].*?)\s*\\text\s*\{(?P<unit>[^{}]*)\}" + _POWER + "$")
_DEGREE = re.compile(r"^(?P<value>.*?)\s*\\degree\s*(?:(?:\\text\{)?\s*[CF]\s*\}?)?$")
_PLAIN = re.compile(
    r"^(?P<value>.*[\d)}])\s*(?<![_^])(?P<unit>[A-Za-z]+(?:[ /][A-Za-z]+){0,3})\.?" + _POWER + "$"
)


def split_unit(text: str) -> tuple[str, str | None]:
    """`text` (normalized) without its unit, and the unit's canonical name.

    The name is None where there is no unit, and "" for words that are no unit of measurement.
    """
    for symbol, unit in _CURRENCY.items():
        if text.startswith(symbol):
            return text[len(symbol) :].strip(), unit
        if text.endswith(symbol):
            return text[: -len(symbol)].strip(), unit
        if text.startswith("-" + symbol):
            return "-" + text[len(symbol) + 1 :].strip(), unit
    if match := _DEGREE.match(text):
        return match.group("value"), "degree"
    for pattern, is_unit in ((_IN_TEXT, _is_beside_number), (_PLAIN, _is_written_out)):
        match = pattern.match(text)
        name = _unit(match.group("unit")) if match else None
        if match and name is not None and is_unit(match, bool(name)):
            return match.group("value").strip(), _with_power(name, match)
    return text, None


def units_differ(left: str | None, right: str | None) -> bool:
    """Whether both sides name a unit of measurement and not the same."""
    return bool(left) and bool(right) and left != right


def _is_beside_number(match: re.Match[str], known: bool) -> bool:
    return known or re.search(r"\d", match.group("value")) is not None


def _is_written_out(match: re.Match[str], known: bool) -> bool:
    """Whether letters after a number are a word and not a product of variables (`3abc`, `2 m`)."""
    written = match.group("unit")
    if known:
        return len(written) >= 2
    spaced = match.string[match.end("value")].isspace()
    words = re.split("[ /]", written.lower())
    return spaced and all(len(word) >= 4 and re.search("[aeiou]", word) for word in words)


def _with_power(name: str, match: re.Match[str]) -> str:
    power = match.group(match.lastindex or 0) if match.lastindex and match.lastindex > 2 else ""
    if not name:
        return ""
    return f"{name}^{power}" if power and power != "1" else name


def _unit(written: str) -> str | None:
    """The canonical name of a unit, "" for other words, None when it cannot be a unit at all."""
    text = written.strip().strip("().").strip().lower()
    if not text or not re.fullmatch(r"[a-z][a-z .,/()-]*", text):
        return None
    words = text.replace(".", " ").split()
    if len(words) > 5 or _NOT_A_UNIT & set(words):
        return None
    power = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}.get(words[0], "")
    words = words[1:] if power else words
    if len(words) == 1 and words[0] in _CANONICAL:
        return _CANONICAL[words[0]] + power
    speed = [part.strip() for part in re.split(r"/| per ", " ".join(words))]
    if len(speed) == 2 and all(part in _CANONICAL for part in speed):
        return f"{_CANONICAL[speed[0]]} per {_CANONICAL[speed[1]]}"
    return ""
