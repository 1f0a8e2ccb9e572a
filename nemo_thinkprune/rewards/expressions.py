r"""Compares two expressions with math-verify's LaTeX parser and grader. Runs in the worker process only.

Constants are compared to 30 digits and expressions with variables at fixed points to 30 digits, which is
quicker and stricter than the grader's 15 digits and six decimals; relations, matrices and sets go to
math-verify's `verify`. Decimals become fractions before parsing, so nothing is compared as a float.

Never call `compare` on outside text before `close_evaluation`: sympy evaluates strings as Python (`sympify`
and `parse_expr` end in `eval`). math-verify's parser for plain text hands the model's text to `parse_expr`;
it is not used here. Its LaTeX parser hands every number to `sympify`, so that `parse_expr` is replaced by a
function that reads numbers and refuses all else.
"""

import os
import re
import sys
from fractions import Fraction
from functools import lru_cache
from types import FunctionType
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy.core.relational import Relational

_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_DIGITS = 40
_AGREE = sympy.Float("1e-30", 30)
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_NUMBER = re.compile(r"\s*[-+]?(?:\d{1,1000}\.?\d{0,1000}|\.\d{1,1000})(?:[eE][-+]?\d{1,3})?\s*")
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_COEFFICIENT = re.compile(r"(?<![_\d.}A-Za-z])(\d+)\s*(?=[(]|\\frac\{[^{}]*[^\d{}])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|[A-Za-z])\s*\\degree(?![a-z])")
_ODD_ROOT = re.compile(r"\\sqrt\s*\[\s*([1-9]?[13579])\s*\]\s*\{\s*-\s*(\d+)\s*\}")
_PRIMED = re.compile(r"([A-Za-z])\s*('+)")
_POINTS = (
    ((3, 7), (5, 11)),
    ((11, 13), (29, 23)),
    ((-5, 17), (7, 3)),
    ((29, 23), (-13, 9)),
    ((-41, 19), (-6, 5)),
)
_INTEGER_POINTS = ((30, -7), (25, -4), (4, 5), (7, 3))


class EvaluationClosed(RuntimeError):
    """Something tried to turn a string into Python code."""


def close_evaluation() -> None:
    """Makes every way from a string to Python code raise EvaluationClosed, for the rest of the process.

    sympy's `sympify` and its callers look `parse_expr` up in its module when called; math-verify and
    latex2sympy2 hold references of their own. All get `_read_number`.
    The audit hook refuses what remains: compiling source text, starting programs, opening files for writing,
    sockets, and loading C libraries.
    """
    for module in [module for name, module in list(sys.modules.items()) if _may_hold_parser(name)]:
        for attribute in ("parse_expr", "eval_expr", "stringify_expr"):
            if isinstance(getattr(module, attribute, None), FunctionType):
                setattr(module, attribute, _read_number)
    sys.addaudithook(_refuse_side_effects)


def compare(answer: str, gold: str) -> bool:
    """Whether two normalized LaTeX expressions are equal; False where either cannot be parsed.

    Raises MemoryError where a limit is met; every other failure of the libraries counts as not equal.
    """
    complex_numbers = any(_IMAGINARY.search(text) or should_treat_as_complex(text) for text in (answer, gold))
    try:
        left, right = parse(answer, complex_numbers), parse(gold, complex_numbers)
        if left is None or right is None:
            return False
        verdict = _numerically_equal(left, right)
        if verdict is not None:
            return verdict
        return bool(
            verify(right, left, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
        )
    except MemoryError:
        raise
    except Exception:
        return False


@lru_cache(maxsize=256)
def parse(text: str, complex_numbers: bool) -> Any:
    """The sympy object of a LaTeX expression, or None."""
    text = re.sub(r"\^(\d)(?!\d)", r"^{\1}", text)
    text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    text = _ODD_ROOT.sub(r"(-\\sqrt[\1]{\2})", text)
    text = re.sub(r"\\lg(?![A-Za-z])", r"\\log_{10}", text)
    text = _PRIMED.sub(lambda match: f"{match[1]}_{{9{len(match[2])}}}", text)  # a name of its own
    text = _COEFFICIENT.sub(r"\1 \\cdot ", _DECIMAL.sub(_as_fraction, text.replace("%", r"\%")))
    try:
        parsed = latex2sympy(
            normalize_latex(text, _NORMALIZATION),
            is_real=not complex_numbers,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
        if complex_numbers and not parsed.has(sympy.Sum, sympy.Product):  # there it counts terms
            parsed = parsed.xreplace({sympy.Symbol("i", real=False): sympy.I, sympy.Symbol("i"): sympy.I})
        return parsed
    except MemoryError:
        raise
    except Exception:
        return None


def _as_fraction(match: re.Match[str]) -> str:
    whole, places = match.groups()
    return rf"\frac{{{int(whole + places)}}}{{{10 ** len(places)}}}"


def _numerically_equal(left: Any, right: Any) -> bool | None:
    """Equality of two scalars by their values to 30 digits; None where they have none."""
    if not all(isinstance(side, sympy.Expr) and not isinstance(side, Relational) for side in (left, right)):
        return None
    bound = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)
    left, right = (side.doit() if side.has(*bound) else side for side in (left, right))
    if any(side.has(sympy.oo, -sympy.oo, sympy.nan, sympy.zoo) for side in (left, right)):
        return None
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols:
        return _agree(left, right)
    compared = 0
    for start, step in _points(left, right):
        values = {symbol: start + step * index for index, symbol in enumerate(symbols)}
        verdict = _agree(left.xreplace(values), right.xreplace(values))
        if verdict is False:
            return False
        compared += verdict is True
    return True if compared >= 3 else None


def _points(left: Any, right: Any) -> list[tuple[Any, Any]]:
    """The first symbol's value and the step to the next one's, for each point of comparison.

    Counting functions get integers, in falling and rising order: `(d-k)!` is a pole for d < k.
    """
    counting = (sympy.factorial, sympy.binomial, sympy.Sum, sympy.Product)
    if any(side.has(*counting) for side in (left, right)):
        return [(sympy.Integer(start), sympy.Integer(step)) for start, step in _INTEGER_POINTS]
    return [(sympy.Rational(*start), sympy.Rational(*step)) for start, step in _POINTS]


def _agree(left: Any, right: Any) -> bool | None:
    """Whether two constants agree to 30 digits; None where one has no finite value."""
    values = [sympy.N(side.doit(), _DIGITS) for side in (left, right)]
    if not all(
        value.is_number and value.is_finite and not value.has(sympy.Integral, sympy.Limit) for value in values
    ):
        return None
    scale = max(abs(value) for value in values)
    if scale == 0:
        return True
    return bool(abs(values[0] - values[1]) <= _AGREE * scale)


def _may_hold_parser(name: str) -> bool:
    return name.split(".")[0] in ("sympy", "math_verify", "latex2sympy2_extended")


def _read_number(text: object, *_: object, **__: object) -> sympy.Rational:
    """Stands where sympy would evaluate text: reads a decimal number exactly, refuses anything else."""
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise EvaluationClosed("text is never evaluated as code")
    value = Fraction(text.strip())
    return sympy.Rational(value.numerator, value.denominator)


_REFUSED = frozenset(
    {
        "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.remove", "os.rename",
        "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.kill",
        "subprocess.Popen", "shutil.rmtree", "shutil.copyfile", "shutil.move", "socket.__new__", "socket.connect",
        "socket.bind", "ctypes.dlopen", "ctypes.dlsym", "urllib.Request", "pty.spawn", "code.__new__",
        "pickle.find_class", "builtins.input",
    }
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _refuse_side_effects(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook (it cannot be removed): no program, file, socket, library or source text from here on."""
    if event in _REFUSED:
        raise EvaluationClosed(event)
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        raise EvaluationClosed("open for writing")
    if event == "compile" and arguments[0] is not None and str(arguments[1]).startswith("<"):
        raise EvaluationClosed("compile")
    if (
        event == "exec"
        and arguments[0].co_filename.startswith("<")
        and "frozen" not in arguments[0].co_filename
    ):
        raise EvaluationClosed("exec")
