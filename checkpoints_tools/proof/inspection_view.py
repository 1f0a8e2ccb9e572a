"""An inspection for people: a summary, the tensors with alike layers on one line, the files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from checkpoints_tools.proof.inspection import Inspection, TensorRow
from checkpoints_tools.shapes import Index
from checkpoints_tools.sizes import size

_LAYER = re.compile(r"(.*?\blayers\.)(\d+)\.(.+)")
_STACKED = "decoder.layers."
_ROLES = ("weights", "checkpoint", "manifest", "config", "tokenizer", "run", "text", "unknown")
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class Line:
    """Alike tensors: the same name in several layers, with the same dtype, shape and pieces."""

    section: str
    name: str
    layers: tuple[int, ...]
    row: TensorRow

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self.row.nbytes * max(1, len(self.layers))


def grouped(tensors: Iterable[TensorRow]) -> list[Line]:
    """Tensors with those that are alike in several layers on one line, in the order of their first."""
    groups: dict[tuple[str, str, str, Index, Index], tuple[list[int], TensorRow]] = {}
    for row in tensors:
        match = _LAYER.fullmatch(row.key)
        section, name = (match[1], match[3]) if match else ("", row.key)
        layers, _ = groups.setdefault((section, name, row.dtype, row.shape, row.pieces), ([], row))
        if match:
            layers.append(int(match[2]))
    return [Line(key[0], key[1], tuple(sorted(layers)), row) for key, (layers, row) in groups.items()]


def ranges(numbers: Sequence[int]) -> str:
    """Sorted integers as `0-2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def render(console: Console, found: Inspection, *, tensors: bool = False) -> None:
    """Print an inspection; `tensors` lists every tensor, the optimizer's too."""
    kind = "Hugging Face model" if found.format == "huggingface" else "Megatron checkpoint (torch_dist)"
    console.print(Text.assemble((found.path, "bold"), f"  {kind}"), soft_wrap=True)
    console.print(Padding(_summary(found), (1, 0)))
    rows = found.tensors if tensors else [*found.of("model"), *found.of("other")]
    # Two blanks between columns where the longest of Megatron's names leaves room for them.
    console.print(_tensor_table(found, rows, every=tensors, gap=2 if console.width >= 100 else 1))
    console.print()
    console.print(_file_grid(found))


def _summary(found: Inspection) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in _facts(found):
        grid.add_row(label, Text(text))
    for problem in found.problems:
        grid.add_row(Text("problem", "bold red"), Text(problem))
    if not found.problems:
        grid.add_row("complete", "yes" if found.config else "as far as can be told without a config")
    return grid


def _facts(found: Inspection) -> list[tuple[str, str]]:
    config, model = found.config, found.of("model")
    facts = [("config", found.config_note)]
    if config is not None:
        heads = f"{config.num_heads} heads, {config.num_kv_heads} key-value heads of {config.head_dim}"
        facts = [
            (
                "architecture",
                f"{config.architecture}, {config.num_layers} layers, hidden {config.hidden_size}",
            ),
            ("", f"{heads}, ffn {config.ffn}"),
            ("", f"vocabulary {config.vocab_size:,}, {'tied' if config.tied else 'untied'} embeddings"),
        ]
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    facts.append(("parameters", f"{found.parameters:,}"))
    facts.append(("weights", f"{size(found.model_bytes)} in {len(model)} tensors ({dtypes})"))
    if found.format == "torch_dist":
        facts += _checkpoint_facts(found)
    if found.digest is not None:
        facts.append(("manifest", f"model digest {found.digest}"))
    return facts


def _checkpoint_facts(found: Inspection) -> list[tuple[str, str]]:
    facts = [("in", found.weights)] if found.weights not in ("", ".") else []
    facts += [("layers", {"stacked": "stacked along a leading axis", "per layer": "a key for each"}[found.layers])
             ] if found.layers else []  # fmt: skip
    chunks = sum(row.chunks for row in found.tensors)
    tp = f"cut for tensor parallel size {found.tensor_parallel}, " if found.tensor_parallel else ""
    weights = [file for file in found.files if file.role == "weights"]
    writers = f", written by {found.writers} ranks" if found.writers and found.writers > 1 else ""
    facts.append(("sharding", f"{tp}{chunks:,} chunks in {_count(len(weights), 'file')}{writers}"))
    if found.vocabulary is not None and found.padding:
        text = f"{found.vocabulary:,} rows stored, {found.padding:,} of them padding"
        if found.padding < 0:
            text = f"{found.vocabulary:,} rows stored, {-found.padding:,} fewer than the config says"
        facts.append(("embedding", text))
    if optimizer := found.of("optimizer"):
        nbytes = sum(row.nbytes for row in optimizer)
        facts.append(("optimizer", f"{size(nbytes)} in {len(optimizer)} tensors"))
    if found.items:
        facts.append(("objects", f"{found.items} pickled objects, {size(found.item_bytes)} (never loaded)"))
    return facts


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _tensor_table(found: Inspection, rows: Sequence[TensorRow], *, every: bool, gap: int) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("type", no_wrap=True)
    split = found.format == "torch_dist"
    if split:
        table.add_column("chunks", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    lines = [Line("", row.key, (), row) for row in rows] if every else grouped(rows)
    last = ""
    for line in lines:
        section, name, shape = ("", line.name, line.row.shape) if every else _placed(line)
        if section and section != last:
            table.add_row(Text(section))
        last = section
        cells = [" x ".join(map(str, shape)), line.row.dtype, *([_pieces(line.row)] if split else [])]
        table.add_row(Text(f"  {name}" if section else name), *cells, size(line.nbytes))
    return table


def _placed(line: Line) -> tuple[str, str, Index]:
    """(heading, name below it, shape of one layer) of a line; a tensor outside the layers has no heading."""
    shape = line.row.shape
    if line.section:
        return f"{line.section}{ranges(line.layers)}", line.name, shape
    if line.name.startswith(_STACKED) and shape:
        return f"{_STACKED}* ({shape[0]} stacked)", line.name.removeprefix(_STACKED), shape[1:]
    return "", line.name, shape


def _pieces(row: TensorRow) -> str:
    """Chunks, as the product of how many cut each axis: 64 x 2."""
    cuts = [str(count) for count in row.pieces if count > 1]
    return " x ".join(cuts) or "1"


def _file_grid(found: Inspection) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for role in _ROLES:
        mine = [file for file in found.files if file.role == role]
        if not mine:
            continue
        names = ", ".join(file.name.removeprefix(f"{found.weights}/") for file in mine[:_MOST_NAMES])
        more = f" and {len(mine) - _MOST_NAMES} more" if len(mine) > _MOST_NAMES else ""
        if role == "weights" and len(mine) > 1:
            names, more = f"{len(mine)} files", ""
        grid.add_row(role, Text(f"{names}{more} ({size(sum(file.nbytes for file in mine))})"))
    return grid
