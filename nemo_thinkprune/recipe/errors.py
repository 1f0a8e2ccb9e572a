"""The one exception for input that its author can correct."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: a recipe, a path, a data file or a combination of settings.

    The message says what is wrong, where, and what to do about it.  The command line prints the message
    without a traceback and exits with code 2; library callers may catch it as a `ValueError`.
    """
