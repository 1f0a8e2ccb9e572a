"""Write pickles that name torch's types without importing torch: protocol 2, as torch.save writes them.

Source of the opcodes: Python's `pickletools`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

Value: TypeAlias = (
    "bool | int | float | str | tuple[Value, ...] | list[Value] | Mapping[Value, Value] | "
    "Global | Call | New | Stored | None"
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Global:
    """A module's function or class, by name."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """What calling a global with these arguments gives."""

    function: Global
    arguments: tuple[Value, ...]


@dataclass(frozen=True, slots=True, eq=False)
class New:
    """An object made without its constructor, then given its state (a dict of attributes, or any value)."""

    type: Global
    state: Value


@dataclass(frozen=True, slots=True)
class Stored:
    """An object outside the pickle, by its persistent id."""

    key: tuple[Value, ...]


def pickled(value: Value) -> bytes:
    """The value as a pickle of protocol 2.

    Equal strings and globals become one object. Plain values give the bytes of `pickle.dumps(value, 2)`, save
    where that knows two equal objects as two, or one tuple, list or dict as one.
    """
    writer = _Writer(bytearray(b"\x80\x02"), {})
    writer.put(value)
    return bytes(writer.out + b".")


@dataclass(slots=True)
class _Writer:
    out: bytearray
    seen: dict[str | Global, int]
    count: int = 0

    def put(self, value: Value) -> None:
        out = self.out
        if value is None:
            out += b"N"
        elif isinstance(value, bool):
            out += b"\x88" if value else b"\x89"
        elif isinstance(value, int):
            out += _integer(value)
        elif isinstance(value, float):
            out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str | Global):
            self._named(value)
        elif isinstance(value, tuple):
            self._tuple(value)
        elif isinstance(value, list):
            self._list(value)
        elif isinstance(value, Mapping):
            self._dict(value)
        else:
            self._object(value)

    def _object(self, value: Call | New | Stored) -> None:
        if isinstance(value, Stored):
            self.put(value.key)
            self.out += b"Q"
        elif isinstance(value, Call):
            self.put(value.function)
            self.put(value.arguments)
            self.out += b"R"
            self._remember()
        else:
            self.put(value.type)
            self.out += b")\x81"
            self._remember()
            self.put(value.state)
            self.out += b"b"

    def _remember(self) -> int:
        index, self.count = self.count, self.count + 1
        self.out += b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)
        return index

    def _named(self, value: str | Global) -> None:
        index = self.seen.get(value)
        if index is not None:
            self.out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)
            return
        if isinstance(value, Global):
            self.out += f"c{value.module}\n{value.name}\n".encode("ascii")
        else:
            text = value.encode("utf-8", "surrogatepass")
            self.out += b"X" + struct.pack("<I", len(text)) + text
        self.seen[value] = self._remember()

    def _tuple(self, values: tuple[Value, ...]) -> None:
        if len(values) > 3:
            self.out += b"("
        for value in values:
            self.put(value)
        self.out += (b")", b"\x85", b"\x86", b"\x87")[len(values)] if len(values) <= 3 else b"t"
        if values:
            self._remember()

    def _list(self, values: list[Value]) -> None:
        self.out += b"]"
        self._remember()
        for batch in _batches(values):
            self.out += b"(" if len(values) > 1 else b""
            for value in batch:
                self.put(value)
            self.out += b"e" if len(values) > 1 else b"a"

    def _dict(self, values: Mapping[Value, Value]) -> None:
        self.out += b"}"
        self._remember()
        for batch in _batches(list(values.items())):
            self.out += b"(" if len(values) > 1 else b""
            for key, value in batch:
                self.put(key)
                self.put(value)
            self.out += b"u" if len(values) > 1 else b"s"


def _batches(values: list[T]) -> Iterator[list[T]]:
    return (values[first : first + 1000] for first in range(0, len(values), 1000))


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return b"K" + bytes([value])
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes((value if value >= 0 else ~value).bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data  # integers of up to 255 bytes
