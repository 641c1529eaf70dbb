"""How log lines are packed: in chunks of a bounded size, each compressed by itself. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import zstandard

from ci_platform.model import LogLine

CHUNK_LINES_MAX = 1000
CHUNK_BYTES_MAX = 256 << 10  # before compression; a longer line has a chunk of its own


@dataclass(frozen=True, slots=True)
class Chunk:
    first: int  # numbers of its lines
    last: int
    size: int  # before compression
    data: bytes


def chunks(lines: Sequence[LogLine]) -> Iterator[Chunk]:
    """Pack lines, of which there is at least one."""
    part: list[LogLine] = []
    size = 0
    for line in lines:
        size += len(line.text)
        if part and (len(part) >= CHUNK_LINES_MAX or size > CHUNK_BYTES_MAX):
            yield _packed(part)
            part, size = [], len(line.text)
        part.append(line)
    yield _packed(part)


def unpacked(data: bytes, size: int) -> Iterator[LogLine]:
    """The lines of a chunk. Raises zstandard.ZstdError if it is damaged."""
    text = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    for at_ms, stream, first, texts in json.loads(text):
        for number, one in enumerate(texts, first):
            yield LogLine(number, at_ms, stream, one)


def _packed(lines: Sequence[LogLine]) -> Chunk:
    """Lines of one moment and stream share them: [[at_ms, stream, first number, [text, ...]]]."""
    groups = []
    numbered = [(line.number - index, line) for index, line in enumerate(lines)]
    for (_, at_ms, stream), group in groupby(
        numbered, key=lambda item: (item[0], item[1].at_ms, item[1].stream)
    ):
        own = [line for _, line in group]
        groups.append([at_ms, stream, own[0].number, [line.text for line in own]])
    data = json.dumps(groups, separators=(",", ":")).encode()
    compressed = zstandard.ZstdCompressor(level=1).compress(data)
    return Chunk(lines[0].number, lines[-1].number, len(data), compressed)
