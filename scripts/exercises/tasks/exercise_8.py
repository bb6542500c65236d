"""Exercise 8: a claim protocol that survives a death.

The pieces of a step lie in shared memory. claims[p] is the rank of the worker that has piece p, or -1 if nobody has it.
seals[p] is True once its result is complete. A worker takes a piece, computes it, writes the result, and seals it. It
may die at any point in between. Then others must do what it left, once, and nothing that is sealed.
"""


def take(claims, seals, rank, alive):
    """The number of a piece that this worker shall do now, after its claim was set; None if there is none for it.

    claims: a list of ranks, or -1. seals: a list of booleans. alive: the set of ranks that live; `rank` is one of them.
    A dead worker stays in `claims` with its rank, which is not in `alive`.
    """
    raise NotImplementedError  # your lines
