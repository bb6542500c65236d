"""Part p starts at rank p + 1 and ends, complete, at rank p. `sn.parallel.collectives` has four others."""

import numpy as np


def ring(link, x, combine):
    parts = np.array_split(x, link.size)
    after, before = (link.rank + 1) % link.size, (link.rank - 1) % link.size
    for step in range(link.size - 1):
        outgoing, part = parts[(link.rank - step - 1) % link.size], parts[(link.rank - step - 2) % link.size]
        incoming = np.empty_like(part)
        link.exchange(outgoing, after, incoming, before)
        combine(incoming, part, part)
    for step in range(link.size - 1):
        outgoing, part = parts[(link.rank - step) % link.size], parts[(link.rank - step - 1) % link.size]
        link.exchange(outgoing, after, part, before)
