"""CRC-32 of two byte strings in a row from their CRC-32s, so that they can be written in any order.

A CRC is a remainder of polynomials over GF(2): appending n bytes multiplies by x^(8n). Same meaning as zlib's
`crc32_combine`, which Python's zlib does not offer. Bit 31 holds x^0, as in the reflected CRC-32.
"""

from functools import cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def combine_crc32(first: int, second: int, second_bytes: int) -> int:
    """CRC-32 of a + b from those of a and of b; `second_bytes` is the length of b."""
    shift, power = _ONE, 3  # 2^3 bits a byte
    while second_bytes:
        if second_bytes & 1:
            shift = _multiply(_square_power(power), shift)
        second_bytes >>= 1
        power += 1
    return _multiply(shift, first) ^ second


@cache
def _square_power(n: int) -> int:
    """x^(2^n) modulo the polynomial."""
    return _ONE >> 1 if n == 0 else _multiply(_square_power(n - 1), _square_power(n - 1))


def _multiply(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
