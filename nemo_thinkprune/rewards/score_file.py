"""`thinkprune score FILE.jsonl`: scores the rows of a file and writes them back with their verdicts."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.rewards.score import Scorer
from nemo_thinkprune.rewards.types import Item, Reason

_BATCH = 256


@dataclass(frozen=True, slots=True)
class FileScore:
    """What a scored file holds: its rows, the mean reward (0.0 for no rows), and the rows of each reason."""

    path: Path
    rows: int
    reward_mean: float
    reasons: dict[Reason, int]


def score_file(
    path: Path, out: Path | None = None, *, scorer: Scorer, progress: Callable[[int, int], None] | None = None
) -> FileScore:
    """Scores a JSONL file with `response` (text), `gold` (text or integer) and `finished` (true or false).

    Every row is written to `out` (the file itself when None) with `reward`, `reason` and `answer` set, its
    other keys unchanged, and the file appears whole or not at all. All rows are checked before the first is
    scored. `progress(done, total)` is called after each batch of rows.

    Raises UserError, naming the line, for a row that cannot be scored, and for a file that cannot be read.
    """
    rows = list(read_rows(path))
    scored: list[str] = []
    reasons: Counter[Reason] = Counter()
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        items = [Item(row["response"], str(row["gold"]), row["finished"]) for row in batch]
        for row, verdict in zip(batch, scorer.score(items), strict=True):
            reasons[verdict.reason] += 1
            judged = {"reward": verdict.reward, "reason": str(verdict.reason), "answer": verdict.answer}
            scored.append(json.dumps(row | judged, ensure_ascii=False) + "\n")
        if progress:
            progress(len(scored), len(rows))
    target = out or path
    # A lone surrogate, legal in JSON, has no UTF-8; it is written as "?".
    write_atomic(target, "".join(scored).encode("utf-8", errors="replace"))
    return FileScore(target, len(rows), reasons[Reason.CORRECT] / max(1, len(rows)), dict(reasons))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file to score, each checked; blank lines are skipped."""
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _checked(line, f"{path}, line {number}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _checked(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); each line must be one JSON object") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON object is needed, not {type(row).__name__}")
    missing = [key for key in ("response", "gold", "finished") if key not in row]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; a row needs response, gold and finished")
    if not isinstance(row["response"], str):
        raise UserError(f"{where}: response must be text, not {type(row['response']).__name__}")
    if isinstance(row["gold"], bool) or not isinstance(row["gold"], str | int):
        raise UserError(f"{where}: gold must be text or an integer, not {type(row['gold']).__name__}")
    if not isinstance(row["finished"], bool):
        raise UserError(f"{where}: finished must be true or false, not {row['finished']!r}")
    return row
