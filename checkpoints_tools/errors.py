"""The error this package raises on bad input."""


class CheckpointError(ValueError):
    """A model folder or checkpoint cannot be used; the message says what is wrong and what would help."""


def printable(text: str, *, most: int = 2000) -> str:
    """Text for a terminal: what could steer it, or is not text at all, is escaped; at most `most` characters."""
    shown = text if len(text) <= most else text[:most] + "..."
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in shown)
