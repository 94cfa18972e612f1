"""HPACK's Huffman code (RFC 7541, appendix B), decoded by the byte.

The code is canonical, so the lengths of its codes are all of it. A decoder that has read some bits of a symbol is in a
state, the prefix that it has read; a row of the table says for each byte in a state what it completes and which state
comes next. A row is made when its state is first met: text needs a few dozen of the 256.
"""

from typing import Final, TypeAlias

__all__ = ["decode_huffman"]

# fmt: off
_LENGTHS: Final = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15,
    6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22,
    20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23,
    23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22,
    22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26,
    27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27,
    26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
)
# fmt: on
"""The bits of each symbol's code; the last symbol is EOS, which no text has."""
_EOS: Final = 256
_PADDING_BITS_MAX: Final = 7

_Row: TypeAlias = list[tuple[int, bytes] | None]


def _make_codes() -> dict[tuple[int, int], int]:
    """Return each symbol by its code: the number of bits, and the bits."""
    codes = {}
    code = bits = 0
    for symbol in sorted(range(len(_LENGTHS)), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        code <<= _LENGTHS[symbol] - bits
        bits = _LENGTHS[symbol]
        codes[bits, code] = symbol
        code += 1
    return codes


def _make_states() -> dict[tuple[int, int], int]:
    """Return a number for each beginning of a code; 0 is the empty one."""
    prefixes = {(size, code >> (bits - size)) for bits, code in _CODES for size in range(bits)}
    return {prefix: state for state, prefix in enumerate(sorted(prefixes))}


_CODES: Final = _make_codes()
_STATES: Final = _make_states()
_PREFIXES: Final = tuple(_STATES)
_FINAL: Final = frozenset(_STATES[bits, (1 << bits) - 1] for bits in range(_PADDING_BITS_MAX + 1))
"""States in which a text may end: its last byte is filled up with ones."""
_ROWS: Final[list[_Row | None]] = [None] * len(_STATES)


def decode_huffman(data: bytes) -> bytes:
    """Return the text of a Huffman-coded string. Raises ValueError."""
    state = 0
    texts = []
    for byte in data:
        step = (_ROWS[state] or _make_row(state))[byte]
        if step is None:
            raise ValueError("EOS in a Huffman code")
        state, text = step
        texts.append(text)
    if state not in _FINAL:
        raise ValueError("a Huffman code that is cut off")
    return b"".join(texts)


def _make_row(state: int) -> _Row:
    row = _ROWS[state] = [_take_byte(*_PREFIXES[state], byte) for byte in range(256)]
    return row


def _take_byte(bits: int, code: int, byte: int) -> tuple[int, bytes] | None:
    """Return the state after a byte, and what it completes; None if that is EOS."""
    text = bytearray()
    for place in range(7, -1, -1):
        bits, code = bits + 1, code << 1 | byte >> place & 1
        symbol = _CODES.get((bits, code))
        if symbol == _EOS:
            return None
        if symbol is not None:
            text.append(symbol)
            bits = code = 0
    return _STATES[bits, code], bytes(text)
