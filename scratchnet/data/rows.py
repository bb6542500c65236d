"""Rows of arrays: made uniform and checked when a data set is built, taken by number when it is asked for a batch."""

import functools
import math

import numpy as np

from .. import checks
from ..errors import DataError, DtypeError, IndexOutOfRangeError, ShapeError
from ..kernels.signatures import HALVES


def as_rows(values, what, remedy=""):
    """`values` as a contiguous native array of bool, integers, float32 or float64, with at least one dimension.

    Halves become float32.
    """
    checks.check_masks(what, values)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ShapeError(f"{what}: expected rows of one shape ({error}){remedy}") from None
    if (array.dtype.kind not in "biuf" and array.dtype not in HALVES) or array.dtype.itemsize > 8:
        raise DtypeError(f"{what}: expected bool, integers or floats of at most 64 bits, got {array.dtype}")
    if array.ndim == 0:
        raise ShapeError(f"{what}: expected at least one dimension, got a single number")
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"{what}: expected integers that fit in int64, found {array.max()}")
    dtype = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, np.float32 if dtype in HALVES else dtype)


def check_lengths(arrays, what):
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ShapeError(f"{what}: expected arrays of equal length, got lengths {', '.join(map(str, lengths))}")


def finite_rows(array):
    """For each row, whether all its numbers are finite: (n,) bool."""
    if array.dtype.kind != "f":
        return np.ones(len(array), bool)
    return np.isfinite(array).all(axis=tuple(range(1, array.ndim)))


def check_finite(array, what, names=None, remedy=""):
    finite = finite_rows(array)
    if not finite.all():
        row = np.argmin(finite)
        raise DataError(
            f"{what} {row if names is None else names[row]}: expected finite numbers, found NaN or Inf{remedy}"
        )


def collated(samples, what, names=None):
    """Samples of one kind as one thing of b rows: tuples as a tuple, dicts as a dict, text as a list, numbers stacked.

    what: the beginning of messages. names: the numbers by which messages call the samples.
    """
    if any(isinstance(sample, tuple | dict) for sample in samples):
        if len({_fields(sample) for sample in samples}) > 1:
            found = checks.shown([_fields(sample) for sample in samples])
            raise ShapeError(f"{what}: expected samples of equal length, got {found} fields")
        names_of_fields = samples[0] if isinstance(samples[0], dict) else range(len(samples[0]))
        made = {
            k: collated([sample[k] for sample in samples], f"{what}: field {k} of the samples", names)
            for k in names_of_fields
        }
        return made if isinstance(samples[0], dict) else tuple(made.values())
    if all(isinstance(sample, str) for sample in samples):
        return list(samples)
    rows = as_rows(samples, what, "; a collate_fn with pad_sequence makes them equally long")
    check_finite(rows, f"{what.split(':')[0]}: sample", names)
    return widen(rows)


def _fields(sample):
    """How many fields a tuple has, the names of those of a dict, or no fields."""
    return tuple(sample) if isinstance(sample, dict) else len(sample) if isinstance(sample, tuple) else "no"


def take(array, positions):
    """The rows at `positions`; numbers other than floats come as int64."""
    return widen(array.take(positions, axis=0))


def widen(array):
    """Floats as they are, other numbers as int64."""
    return array if array.dtype.kind == "f" else array.astype(np.int64, copy=False)


def checked_positions(positions, n):
    """(b,) integers from 0 to n - 1, as an int64 array. Checked here: the kernel would read outside the array."""
    try:
        positions = np.asarray(positions)
    except ValueError:
        checks.refuse("gather", "a list of integer positions", positions, DtypeError)
    if positions.size == 0:
        return np.empty(0, np.int64)
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise DtypeError(f"expected a list of integer positions, got {positions.dtype} of shape {positions.shape}")
    low, high = positions.min(), positions.max()
    if low < 0 or high >= n:
        raise IndexOutOfRangeError(f"expected positions from 0 to {n - 1}, got {low if low < 0 else high}")
    return np.ascontiguousarray(positions, np.int64)


def take_scaled(array, positions, scale):
    """The rows at `positions` times `scale`, float32. Images take one pass: 4 us for 64 of Fashion-MNIST, not 18."""
    if array.dtype != np.uint8:  # each further type would have to be compiled
        return array.take(positions, axis=0).astype(np.float32) * scale
    row_shape = array.shape[1:]
    out = np.empty((len(positions), math.prod(row_shape)), np.float32)
    _compiled_take()(array.reshape(len(array), out.shape[1]), positions, scale, out)
    return out.reshape(len(positions), *row_shape)


def take_scaled_bytes(rows, index, scale, out):
    """out[i] = rows[index[i]] * scale: rows (n, f) uint8, index (b,) int64, scale float32, out (b, f) float32."""
    for i in range(index.size):
        source, target = rows[index[i]], out[i]
        for j in range(source.size):
            target[j] = np.float32(source[j]) * scale


@functools.cache
def _compiled_take():
    from ..native.compile import jit  # here, not above: importing scratchnet does not load Numba

    return jit(take_scaled_bytes)
