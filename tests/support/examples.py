"""How property tests draw their examples."""

from __future__ import annotations

from hypothesis import settings


def repeatable(max_examples: int) -> settings:
    """The same examples in every run.

    A run that fails must fail again for whoever looks into it, and a change must not be blamed for an example
    that chance had not found before. To explore, take `derandomize` away and raise `max_examples`.
    """
    return settings(max_examples=max_examples, deadline=None, derandomize=True)
