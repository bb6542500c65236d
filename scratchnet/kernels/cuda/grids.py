"""Grids: how many blocks and threads share the elements of an array, and when a thread may move 16 bytes at once."""

from typing import Any

from . import tuning


def is_wide(*arrays: Any) -> bool:
    """May 16 bytes be moved at once?"""
    return not any(x.address % 16 for x in arrays)


def in_row(size: int, per_thread: int = 1) -> tuple[int, int]:
    """(blocks, threads) of a grid-stride loop over so many elements."""
    numbers = tuning.current()
    return max(1, min(-(-size // (numbers.threads * per_thread)), numbers.blocks)), numbers.threads


def in_plane(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(blocks, threads) of a grid that strides over rows and columns, threadIdx.x along the columns."""
    numbers = tuning.current()
    across = 1
    while across < min(columns, numbers.threads):
        across *= 2
    down = numbers.threads // across
    wide = min(-(-columns // across), numbers.blocks)
    return (wide, max(1, min(-(-rows // down), numbers.blocks // wide))), (across, down)
