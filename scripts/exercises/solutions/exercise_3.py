"""range(0, n, tile) also begins the last tile, and a slice that reaches past the end of an array is cut there."""


def tiled_product(a, b, out, tile):
    (m, k), n = a.shape, b.shape[1]
    out[...] = 0
    for i in range(0, m, tile):
        for j in range(0, n, tile):
            for s in range(0, k, tile):
                out[i : i + tile, j : j + tile] += a[i : i + tile, s : s + tile] @ b[s : s + tile, j : j + tile]
