"""Exercise 3: a tiled matrix product.

Compute out = a @ b piece by piece: a tile of out, of at most tile x tile elements, is a sum of products, each of a tile
of a and a tile of b. Three tiles fit into the cache, where the whole matrices do not. The product of two tiles is `@`.
"""


def tiled_product(a, b, out, tile):
    """a is (m, k), b is (k, n), out is (m, n) and may hold anything before. Nothing is returned.

    tile: rows and columns of a tile; m, k and n need not be multiples of it, so the last tiles may be smaller.
    """
    raise NotImplementedError  # your lines
