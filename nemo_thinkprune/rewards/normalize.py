"""One spelling for answers: Unicode and LaTeX variants of the same notation become the same text.

Nothing here decides equality or changes a value; an answer that needs judgement (units, percent, thousands
separators in a list) keeps its signs for the modules that judge them.
"""

import re
import unicodedata

_CHARS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ",
        "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ", "π": r"\pi ",
        "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "√": r"\sqrt ",
        "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "°": r"\degree ", "º": r"\degree ",
        "⟨": r"\langle ", "⟩": r"\rangle ", "，": ",", "、": ",", "；": ";", "。": ".", "’": "'", "θ": r"\theta ",
        "ℝ": r"\mathbb{R}", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}", "⅛": r"\frac{1}{8}", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
        "⌉": r"\rceil ", "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "", "\u00ad": "",
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_PLAIN_FUNCTION = "(?:arc)?(?:sin|cos|tan)|cot|sec|csc|ln|log"
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)\s*\.(?!\d)", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])", ""),
        (r"\\(?:display|text|script)style(?![a-z])", ""),
        (r"\\(?:d|t|c)frac(?![a-z])", r"\\frac"),
        (r"\\(?:d|t)binom(?![a-z])", r"\\binom"),
        (r"\\math(?:bf|it|cal)\s*\{\s*([A-Za-z])\s*\}|\\mathrm\s*\{\s*([eid])\s*\}", r" \1\2 "),
        (r"\\color\s*\{\s*[A-Za-z]*\s*\}|\\textcolor\s*\{[^{}]*\}(?=\s*\{)", ""),
        (r"\\(?:boldsymbol|bm|bold|pmb|underline|mathcal)(?![a-zA-Z])", ""),
        (r"(^|[-+*=,(])\s*\{(\d+)\}(?=\d)|(^|[-+*=,(])\s*(\d+)\{(\d+)\}", r"\1\2\3\4\5"),  # braces do not show
        (rf"(?<![\\A-Za-z])({_PLAIN_FUNCTION})(?=\s*[({{\d\\^_]|\s+[A-Za-z](?![A-Za-z]))", r"\\\1 "),
        (r"\\overline\s*\{\s*([A-Z]{2,})\s*\}", r" \1 "),
        (r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)|math(?:rm|bf|it|sf|tt)|mbox|emph)(?![a-z])", r"\\text"),
        (r"^\s*\\text\s*\{\s*([-+]?\d[\d.,:]*)\s+([^{}\d]*)\}\s*$", r"\1 \\text{\2}"),
        (r"\\text\s*\{([-+\d\s.,/:%]*\d[\d\s.,/%]*)\}", r" \1 "),
        (r"(?<=\d)(?:\{,\}|,\\[!,;:]|\\,|\\ |~|\\;|\\!)\s*(?=\d{3}(?!\d))", r"\\thousand"),
        (r"(?<!\\)\\[,;:! >]|~|\\q?quad(?![a-z])|\\(?:no|h|thin)space(?![a-z])", " "),
        (r"\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\}|\\degree|\{\s*\\degree\s*\}|\\text\{o\})", r"\\degree "),
        (r"\\degrees?(?![a-z])", r"\\degree "),
        (r"\\text\s*\{\s*\\degree\s*\}", r"\\degree "),
        (r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-z]))", "'"),
        (r"(?<=[\d})])\s*(?:\\text\s*\{\s*per\s?cent\s*\}|per\s?cent(?![a-z]))", "%"),
        (r"(?<=\d)\s*(?:\\text\s*\{\s*)?(?<![A-Za-z])([apAP])\.\s?[mM]\.?\s*\}?\s*$", r" \\text{\1m}"),
        (r"\\pounds(?![a-z])", "£"),
        (r"\\&", ", "),
        (r"\{([^{}\\]+)\\choose(?![a-z])([^{}\\]+)\}|^([^{}\\]+)\\choose(?![a-z])([^{}\\]+)$", r"\\binom{\1\3}{\2\4}"),
        (r"(?<=[\d.])\s*\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\\overline{\1\2\3}"),
        (r"(?<=[\d.])\s*\\(?:dot|bar|overline)\s*(?:\{(\d+)\}|(\d))", r"\\overline{\1\2}"),
        (r"\\%|％", "%"),
        (r"\\leqslant(?![a-z])|\\le(?![a-z])|<=", r"\\leq "),
        (r"\\geqslant(?![a-z])|\\ge(?![a-z])|>=", r"\\geq "),
        (r"\\lt(?![a-z])", "<"),
        (r"\\gt(?![a-z])", ">"),
        (r"\\ne(?![a-z])", r"\\neq "),
        (r"\\varnothing(?![a-z])", r"\\emptyset "),
        (r"\\infin(?![a-z])|(?<![\\a-z])infinity(?![a-z])|(?<![\\a-z])inf(?![a-z])", r"\\infty "),
        (r"\\text\s*\{\s*([-+]?\s*\\infty)\s*\}", r" \1 "),
        (r"\\lbrace(?![a-z])", r"\\{"),
        (r"\\rbrace(?![a-z])", r"\\}"),
        (r"\\lbrack(?![a-z])", "["),
        (r"\\rbrack(?![a-z])", "]"),
        (r"\\(?:dots|ldots|cdots)(?![a-z])", r"\\ldots "),
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\*\*(?=[\d({-])", "^"),
        (r"⁄|∕", "/"),
    )
)  # fmt: skip
_DELIMITERS = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]")
_DOUBLE_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z%$])")
_SINGLE = re.compile(r"([\^_])\{([0-9A-Za-z])\}(?![0-9A-Za-z])")
_BASE_TEN_GROUP = re.compile(r"\\thousand(?=\d{3})")


def normalize(text: str) -> str:
    """`text` in one spelling: ASCII mathematics, one LaTeX command per notion, single spaces.

    Linear in the length of `text` (which guard.py bounds).
    """
    if not text.isascii():
        text = _ascii_mathematics(text)
    if r"\begin" not in text:
        text = _DOUBLE_BACKSLASH.sub(r"\\", text)
        text = re.sub(r"(?<!\\)&", ",", text)
    text = _DELIMITERS.sub(" ", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _BASE_TEN_GROUP.sub("", text)
    text = _brace_arguments(" ".join(text.split()))
    text = text.strip().strip("*").strip()
    text = re.sub(r"^[:=]\s*", "", text)
    return _split_words(_strip_end(text))


def squeeze(text: str) -> str:
    """`text` without the spaces and braces that carry no meaning; `1 2`, `a b` and `x^{2}3` keep theirs."""
    text = re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])", r"\1@", text)
    text = re.sub(r"(?<=[0-9]) (?=[0-9.])|(?<=[A-Za-z]) (?=[A-Za-z])", "@", text)
    return _SINGLE.sub(r"\1\2", text.replace(" ", "").replace("@", " "))


def unwrap_text(text: str) -> str:
    r"""`text` with every `\text{...}` replaced by its content."""
    previous = None
    while previous != text:
        previous = text
        text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    return " ".join(text.split())


def matching_brace(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`, or -1."""
    depth = 0
    for index in range(start, len(text)):
        if index and text[index - 1] == "\\":
            continue
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index
    return -1


def _ascii_mathematics(text: str) -> str:
    def power(match: re.Match[str]) -> str:
        return "^{" + match.group().translate(_SUPERSCRIPTS) + "}"

    def index(match: re.Match[str]) -> str:
        return "_{" + match.group().translate(_SUBSCRIPTS) + "}"

    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", power, text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", index, text)
    text = text.translate(_CHARS)
    text = unicodedata.normalize("NFKC", text).translate(_CHARS)
    # Digits of other scripts are digits too.
    return "".join(
        str(unicodedata.digit(char)) if not char.isascii() and char.isdecimal() else char for char in text
    )


def _brace_arguments(text: str) -> str:
    r"""Braces the arguments of \frac, \binom and \sqrt: `\frac12`, `\frac 5{9}`, `\sqrt2`."""
    pieces: list[str] = []
    position = 0
    for match in re.finditer(r"\\(frac|binom|sqrt)(?![a-z])\s*", text):
        if match.start() < position:
            continue  # inside an argument that is handled below by its own match
        pieces.append(text[position : match.start()] + "\\" + match.group(1))
        position = match.end()
        if match.group(1) == "sqrt" and text.startswith("[", position):
            close = text.find("]", position)
            pieces.append(text[position : close + 1])
            position = max(close + 1, position)
        for _ in range(1 if match.group(1) == "sqrt" else 2):
            argument, position = _argument(text, position)
            pieces.append(argument)
    return "".join(pieces) + text[position:]


def _argument(text: str, position: int) -> tuple[str, int]:
    while text.startswith(" ", position):
        position += 1
    if text.startswith("{", position):
        close = matching_brace(text, position)
        if close < 0:
            return text[position:], len(text)
        return "{" + _brace_arguments(text[position + 1 : close].strip()) + "}", close + 1
    token = re.compile(r"\\[A-Za-z]+|[0-9A-Za-z]").match(text, position)
    if token is None:
        return "", position
    return "{" + token.group() + "}", token.end()


def _strip_end(text: str) -> str:
    """Without the punctuation of the sentence around it, and without braces around the whole."""
    text = re.sub(r"(?:[\s.,;:]|\\\\)+$", "", text) if not text.endswith(r"\ldots") else text
    while text.startswith("{") and matching_brace(text, 0) == len(text) - 1 and not _is_list(text[1:-1]):
        text = text[1:-1].strip()
    return text


def _is_list(text: str) -> bool:
    # `{1,2}` is a set whose backslashes were lost, `{5}` only a group.
    return "," in text and not re.fullmatch(r"\d{1,3}(,\d{3})+", text)


def _split_words(text: str) -> str:
    r"""`\text{Alice, Bob}` and `\text{(A) and (B)}` as lists of texts."""
    match = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    parts = re.split(r"\s*,\s*(?:and\s+)?|\s+(?:and|or)\s+", match.group(1)) if match else []
    if len(parts) < 2 or not all(part.strip() and part.count("(") == part.count(")") for part in parts):
        return text
    return ", ".join(rf"\text{{{part.strip()}}}" for part in parts)
