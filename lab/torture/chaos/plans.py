"""The damage of a line, as plans drawn by a seed: the bytes to pass on, the waits between, and how to close then."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.kit.upstreams import reset

__all__ = ["ANSWER_PLANS", "CLOSINGS", "PIECE_BYTES", "REQUEST_PLANS", "SOUND", "Piece", "Plan", "drip", "play"]

PIECE_BYTES = 65_536


# What the line does


@dataclass(frozen=True)
class Piece:
    """Bytes to pass on, and the wait before them."""

    data: bytes
    wait_s: float = 0.0


CLOSINGS = ("", "reset", "half-close", "stall")


@dataclass(frozen=True)
class Plan:
    """What to do with known bytes: the pieces to pass on, and how to close then."""

    pieces: Sequence[Piece]
    closing: str = ""


def delay(data: bytes, chance: Random) -> Plan:
    at = chance.randrange(len(data) + 1)
    return Plan([Piece(data[:at], chance.uniform(0, 0.2)), Piece(data[at:], chance.uniform(0, 0.2))])


def drip(data: bytes, chance: Random) -> Plan:
    pieces, at = [], 0
    while at < len(data):
        size = chance.choice((1, 2, 3, 7, 50))
        pieces.append(Piece(data[at : at + size], 0.001 if chance.random() < 0.2 else 0))
        at += size
    return Plan(pieces)


def break_off(closing: str) -> Callable[[bytes, Random], Plan]:
    def plan(data: bytes, chance: Random) -> Plan:
        return Plan([Piece(data[: chance.randrange(len(data))])], closing)

    return plan


REGIONS: dict[str, Callable[[bytes], list[tuple[int, int]]]] = {
    "head": lambda data: [(0, data.find(b"\r\n\r\n"))],
    "chunk size": lambda data: [found.span() for found in re.finditer(rb"(?<=\r\n)[0-9A-F]+(?=\r\n)", data)],
    "JSON": lambda data: [found.span() for found in re.finditer(rb'\{"id".*\}', data)],
    "SSE": lambda data: [found.span() for found in re.finditer(rb"data: |\n\n|\[DONE\]", data)],
}


def flip_bits(region: str) -> Callable[[bytes, Random], Plan]:
    """Flip bits of one to three bytes there."""

    def plan(data: bytes, chance: Random) -> Plan:
        spans = [span for span in REGIONS[region](data) if span[1] > span[0]] or [(0, len(data))]
        bad = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 3))):
            at = chance.randrange(*chance.choice(spans))
            bad[at] ^= 1 << chance.randrange(8)
        return Plan([Piece(bytes(bad))])

    return plan


def garble(data: bytes, chance: Random) -> Plan:
    """Drop a part, repeat it, or insert other bytes."""
    at = chance.randrange(len(data))
    to = min(len(data), at + chance.choice((1, 2, 10, 200)))
    between = chance.choice((b"", data[at:to] * 2, chance.randbytes(to - at) + data[at:to], b"\r\n" + data[at:to]))
    return Plan([Piece(data[:at] + between + data[to:])])


ANSWER_PLANS: dict[str, Callable[[bytes, Random], Plan]] = {
    "delay": delay,
    "drip": drip,
    "reset within the answer": break_off("reset"),
    "half-close within the answer": break_off("half-close"),
    "stall within the answer": break_off("stall"),
    "bits flipped in the head": flip_bits("head"),
    "bits flipped in chunk sizes": flip_bits("chunk size"),
    "bits flipped in JSON": flip_bits("JSON"),
    "bits flipped in the events' frame": flip_bits("SSE"),
    "bytes dropped, repeated, inserted": garble,
}
SOUND = {"delay", "drip", "request delayed", "request dripped"}
"""After which the answer must be OK."""
REQUEST_PLANS: dict[str, Callable[[bytes, Random], Plan]] = {
    "request delayed": delay,
    "request dripped": drip,
    "reset within the request": break_off("reset"),
    "half-close within the request": break_off("half-close"),
    "stall within the request": break_off("stall"),
    "bits flipped in the request": lambda data, chance: flip_bits("head" if chance.random() < 0.5 else "JSON")(
        data, chance
    ),
}


async def play(plan: Plan, writer: asyncio.StreamWriter, passed: bytearray) -> None:
    """Pass on the plan's bytes, and record them."""
    for piece in plan.pieces:
        if piece.wait_s:
            await asyncio.sleep(piece.wait_s)
        passed += piece.data
        writer.write(piece.data)
        await writer.drain()
    if plan.closing == "reset":
        reset(writer)
    elif plan.closing == "half-close" and writer.can_write_eof():
        writer.write_eof()
