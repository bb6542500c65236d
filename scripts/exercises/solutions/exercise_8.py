"""Sealed is done for ever. What is not sealed belongs to its claimer, as long as that lives.

Here one call runs at a time. In the pool, looking and claiming are one instruction, compare and exchange.
"""


def take(claims, seals, rank, alive):
    for piece, owner in enumerate(claims):
        if not seals[piece] and owner not in alive:  # -1 is not alive either
            claims[piece] = rank
            return piece
    return None
