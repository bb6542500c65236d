"""The order in which shards are added up: a fixed binary tree over their numbers, whoever computed them, and when.

    sum of shards [0, K) = sum of [0, P) + sum of [P, K),    P the largest power of two below K

So the shards [i 2^j, (i + 1) 2^j) are always a subtree, and whoever has all of them can add them up alone. In bits: two
shards meet at the highest bit in which their numbers differ. A shard without samples has no leaf; where one side of a
fork is empty, the sum of the other side moves up, and no number changes.

All that is added up over shards is added up here: gradients, pages after local steps, buffers, factors of compression.
A sum of K = 2^j shards of equal size has an error bound that grows with log2 K, not with K (Higham, "The Accuracy of
Floating Point Summation", 1993).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_BEYOND = 1 << 62  # no shard has this number: it meets all others above every fork


def tree_sum(shards: Iterable[int], leaf: Callable[[int], T], add: Callable[[T, T], T]) -> T:
    """The sum over shards, at least one, whose numbers ascend.

    leaf(k): what shard k gives; called in order, once each. add(left, right): a sum, which may take the place of one of
    the two. Beside the leaf that was computed last, at most ceil(log2 K) sums wait at the same time.
    """
    waiting: list[tuple[int, T]] = []  # sums of finished subtrees, in order, each with the number of a shard of it
    for k, following in itertools.pairwise([*shards, _BEYOND]):
        total = leaf(k)
        while waiting and waiting[-1][0] ^ k < k ^ following:  # they meet below the fork to which the next one belongs
            total = add(waiting.pop()[1], total)
        waiting.append((k, total))
    return waiting[0][1]


def subtrees(shards: range, count: int) -> Iterator[range]:
    """The fewest subtrees, of the tree over `count` shards, that hold just these shards; at most 2 log2 K, in order."""
    end = 1 << (count - 1).bit_length() if shards.stop == count else shards.stop  # beyond the last shard there is none
    first = shards.start
    while first < shards.stop:
        size = 1 << ((end - first).bit_length() - 1)
        if first:
            size = min(size, first & -first)
        yield range(first, min(first + size, count))
        first += size
