"""Memory of the device "cuda" that other libraries share, by the array interface and by DLPack."""

import ctypes
import gc
import sys

import numpy as np
import pytest
from gpu_arrays import floats, on_gpu

import scratchnet as sn

NEEDS = "simulated"


class Foreign:
    """An array of another library: all that is known of it is the protocol."""

    def __init__(self, x):
        self.x = x
        interface = x.__array_interface__
        self.__cuda_array_interface__ = {k: interface[k] for k in ("shape", "strides", "typestr", "data", "version")}


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.T, lambda x: x[::2]])
def test_arrays_of_other_libraries_are_shared(make):
    x = make(floats(4, 3))
    t = on_gpu(Foreign(x))
    x[0, 0] = 5
    np.testing.assert_array_equal(t.numpy(), x)
    np.testing.assert_array_equal((t * 2.0).numpy(), x * 2)


def test_our_memory_is_shared_by_the_array_interface():
    t = on_gpu(floats(4, 3))
    interface = t.T.__cuda_array_interface__
    assert interface["shape"] == (3, 4) and interface["strides"] == (4, 12) and interface["version"] == 3
    assert interface["data"] == (t._data.address, False) and interface["typestr"] == "<f4"
    assert not hasattr(sn.Tensor([1.0]), "__cuda_array_interface__")


def test_bfloat16_is_shared_by_dlpack_and_has_no_array_interface():
    x = sn.Tensor([[1.0, 2.5], [3.0, 4.0]], dtype=sn.bfloat16, device="cpu")
    t = sn.cuda.from_dlpack(x)  # in the simulator the memory of the host
    x[0, 0] = 9
    assert t.dtype == sn.bfloat16 and t.device == "cuda" and t.tolist() == [[9, 2.5], [3, 4]]
    again = sn.cuda.from_dlpack(t.T)
    assert again.dtype == sn.bfloat16 and again.tolist() == [[9, 3], [2.5, 4]]
    with pytest.raises(AttributeError, match="no name for bfloat16; DLPack has"):
        _ = t.__cuda_array_interface__


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.int32, np.uint8, bool])
def test_dlpack_shares_memory_both_ways(dtype):
    x = np.arange(12).reshape(3, 4).astype(dtype)
    t = on_gpu(x)
    there = np.from_dlpack(t.T)
    assert there.dtype == dtype
    np.testing.assert_array_equal(there, x.T)
    assert there.__array_interface__["data"][0] == t._data.address
    back = sn.cuda.from_dlpack(x)
    x[0, 0] = 1
    np.testing.assert_array_equal(back.numpy(), x)


def test_dlpack_keeps_memory_as_long_as_somebody_looks_at_it():
    t = on_gpu(np.arange(6.0))
    address = t._data.address
    there = np.from_dlpack(t)
    t.__dlpack__()  # a capsule that nobody takes
    del t
    others = [on_gpu(np.zeros(6)) for _ in range(3)]
    assert address not in {x._data.address for x in others} and there.tolist() == [0, 1, 2, 3, 4, 5]
    from scratchnet.kernels import dlpack

    assert len(dlpack._shared) == 1
    del there
    assert not dlpack._shared
    x = np.arange(3.0)
    references = sys.getrefcount(x)
    borrowed = sn.cuda.from_dlpack(x)
    del borrowed
    gc.collect()
    assert sys.getrefcount(x) == references


def test_dlpack_has_functions_of_its_own_as_dill_changes_those_of_ctypes_pythonapi():
    from scratchnet.kernels import dlpack

    assert dlpack._api.PyCapsule_GetPointer is not ctypes.pythonapi.PyCapsule_GetPointer
