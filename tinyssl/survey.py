"""Counts over the headers of many picture files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tinyssl.data import in_order, worker_count
from tinyssl.headers import Header, read_header
from tinyssl.opening import reading


@dataclass
class Survey:
    """Counts over files whose header can be read.

    Attributes:
        formats: in Pillow's terms.
        modes: in Pillow's terms, or in words where it has none.
        channels: of the files.
        sides: (short, long) sides in pixels.
        deep: number of gray or colour files with more than 8 bits a channel.
    """

    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    sides: Counter[tuple[int, int]] = field(default_factory=Counter)
    deep: int = 0

    @property
    def files(self) -> int:
        """Number of files."""
        return sum(self.formats.values())

    def add(self, header: Header) -> None:
        """Counts a file."""
        self.formats[header.format] += 1
        self.modes[header.mode] += 1
        self.channels[header.channels] += 1
        short, long = sorted((header.width, header.height))
        self.sides[short, long] += 1
        self.deep += header.deep and header.channels in (1, 3)

    def short_sides(self) -> list[int]:
        """The short side of every file, sorted."""
        return sorted(short for (short, _), count in self.sides.items() for _ in range(count))

    def long_pictures(self, ratio: float) -> int:
        """Files whose long side is more than `ratio` times the short one."""
        return sum(n for (short, long), n in self.sides.items() if long > ratio * short)


def survey(files: Sequence[Path], max_pixels: int, workers: int = 0) -> Survey:
    """Reads the headers of files, without those that cannot be read."""
    found = Survey()
    with reading(max_pixels), ThreadPoolExecutor(worker_count(workers)) as pool:
        for header in in_order(pool, read_header, files):
            if header is not None:
                found.add(header)
    return found
