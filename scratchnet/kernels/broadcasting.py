"""Broadcasting as strides: how a loop over rows and columns reads operands of other shapes than its result's."""

from collections.abc import Sequence
from functools import cache

Shape = tuple[int, ...]


@cache
def two_axes(shape: Shape, *operands: Shape) -> tuple[int, Sequence[int]] | None:
    """(columns, strides) to read the shapes `operands` as `shape`, seen as rows of so many columns each.

    strides has two numbers for each operand: at (row, column) it is read at row * first + column * second. They are
    (columns, 1) for a whole array, (0, 1) for one row that repeats, (1, 0) for one column, (0, 0) for a scalar.
    None where two axes do not suffice: the operands repeat along axes that alternate, or all of them along the last.
    """
    padded = [(1,) * (len(shape) - len(operand)) + operand for operand in operands]
    groups: list[tuple[tuple[bool, ...], int]] = []  # neighbouring axes along which the same operands repeat are one
    for axis, size in enumerate(shape):
        varies = tuple(operand[axis] == size for operand in padded)
        if size != 1 and groups and groups[-1][0] == varies:
            groups[-1] = varies, groups[-1][1] * size
        elif size != 1:
            groups.append((varies, size))
    if len(groups) > 2 or (groups and not any(groups[-1][0])):
        return None
    repeated = (False,) * len(operands), 1
    along, columns = groups.pop() if groups else repeated
    down, _ = groups.pop() if groups else repeated
    pairs = [(row * (columns if step else 1), int(step)) for row, step in zip(down, along, strict=True)]
    return max(columns, 1), tuple(stride for pair in pairs for stride in pair)
