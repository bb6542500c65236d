"""Functions that tests run on the ranks of a group, and the same results computed by NumPy."""

import functools

import numpy as np

ORDERED = ("auto", "arena", "one_shot")  # they fold in rank order


def data(seed, rank, shape, dtype):
    """The array of one rank: positive and negative numbers of very different magnitudes."""
    rng = np.random.default_rng((seed, rank))
    values = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * 1000).astype(dtype)


@functools.lru_cache(8)
def of_all(size, seed, shape, dtype):
    """The arrays of all ranks; cached, as tests mostly check several results of the same arrays in turn."""
    return [data(seed, rank, shape, dtype) for rank in range(size)]


def laid_out(comm, array, layout):
    """A new array with the values of `array` in the given layout; `heap` layouts are from comm.empty."""
    shape, dtype = array.shape, array.dtype
    if layout == "heap":
        new = comm.empty(shape, dtype)
    elif layout == "heap on some ranks":
        new = comm.empty(shape, dtype) if comm.rank % 2 else np.empty(shape, dtype)
    elif layout == "part of heap":
        new = comm.empty(array.size + 3, dtype)[3:].reshape(shape)
    elif layout == "strided":
        new = np.empty((*shape, 2), dtype)[..., 0]
    elif layout == "unaligned":
        new = np.empty(array.nbytes + 1, np.uint8)[1:].view(dtype).reshape(shape)
    else:
        new = np.empty(shape, dtype, order=layout)
    new[...] = array
    return new


def call(comm, kind, seed, shape, dtype, layout, kwargs):
    """One collective; returns a copy of this rank's result."""
    array = laid_out(comm, data(seed, comm.rank, shape, dtype), layout)
    result = getattr(comm, kind)(array, **kwargs)
    return np.array(array if kind != "reduce_scatter" else result)


def calls(comm, cases):
    """Several collectives in a row, each with the arguments of `call`."""
    return [call(comm, *case) for case in cases]


def fold(arrays, op):
    """Fold the arrays in their order with NumPy."""
    function = {"max": np.maximum, "min": np.minimum}.get(op, np.add)
    total = arrays[0]
    for array in arrays[1:]:
        total = function(total, array)
    return total / total.dtype.type(len(arrays)) if op == "mean" and len(arrays) > 1 else total
