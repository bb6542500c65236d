"""What a tensor says of itself and becomes, by PyTorch's words, with gradients where there are any."""

import numpy as np
import pytest
from messages import error_line

import scratchnet as sn

pytestmark = pytest.mark.usefixtures("numpy_device")


def test_size_is_numpys_number_and_pytorchs_question():
    t = sn.zeros(2, 3)
    assert t.size == 6 and t.size() == (2, 3) and t.size(0) == 2 and t.size(-1) == 3 and t.size(dim=1) == 3
    assert (t.dim(), t.ndimension(), t.numel(), t.stride(), t.T.stride()) == (2, 2, 6, (3, 1), (1, 3))
    assert t.is_contiguous() and not t.T.is_contiguous() and t.is_floating_point() and not t.long().is_floating_point()
    with pytest.raises(sn.IndexOutOfRangeError, match="size: expected an axis"):
        t.size(2)


def test_elements_as_python_numbers():
    assert sn.tensor([[1, 2]]).tolist() == [[1, 2]] and sn.tensor(1.5).tolist() == 1.5


@pytest.mark.parametrize(("name", "dtype"), sn.dtypes.CONVERSIONS.items())
def test_a_dtype_by_the_method_of_its_name(name, dtype):
    t = sn.tensor([0.0, 1.75])
    assert getattr(t, name)().dtype == getattr(sn, name) == dtype
    np.testing.assert_array_equal(getattr(t, name)().numpy(), t.numpy().astype(dtype))
    assert t.type(dtype).dtype == dtype and t.type() == "float32"


def test_to_takes_devices_dtypes_and_tensors():
    t = sn.tensor([1.0], requires_grad=True)
    assert t.to("numpy") is t and t.to(sn.device("numpy")) is t and t.to(sn.float32) is t and t.float() is t
    assert t.to("cpu").device == t.cpu().device == t.to(device="cpu").device == "cpu"
    both = t.to("cpu", sn.float64)
    assert (both.device, both.dtype) == ("cpu", sn.float64)
    alike = t.to(both)
    assert (alike.device, alike.dtype) == ("cpu", sn.float64)
    assert t.to(both, dtype=sn.float32).dtype == sn.float32
    (t.double() * 2).cpu().sum().backward()
    assert t.grad.tolist() == [2.0] and t.grad.dtype == sn.float32


@pytest.mark.parametrize(
    ("call", "error"), [(lambda t: t.to(), sn.ConfigError), (lambda t: t.to(None), sn.DeviceError),
                        (lambda t: t.to("float64"), sn.DeviceError), (lambda t: t.to(dtype=3), sn.DtypeError)]
)  # fmt: skip
def test_what_is_neither_is_refused_in_a_line(call, error):
    with pytest.raises(error) as caught:
        call(sn.tensor([1.0]))
    error_line(caught)


def test_a_device_is_its_name_with_attributes():
    device = sn.device("cuda:0")
    assert device == "cuda" and (device.type, device.index) == ("cuda", 0) and sn.device("cpu").index is None
    assert sn.zeros(1).device.type == "numpy" and sn.zeros(1, device=sn.device("cpu")).device == sn.device("cpu")
    assert (sn.zeros(1, device=sn.device("cpu")) + sn.zeros(1, device="cpu")).tolist() == [0]  # one and the same


def test_data_is_the_memory_without_the_record_and_takes_over_numbers():
    w = sn.tensor([1.0, 2.0], requires_grad=True)
    w.data -= 0.5
    w.data = sn.tensor([3.0, 4.0])
    assert w.tolist() == [3, 4] and w.requires_grad and w.is_leaf and not w.data.requires_grad
    for value, error in (([1.0, 2.0], sn.DtypeError), (sn.zeros(3), sn.ShapeError)):
        with pytest.raises(error, match="data: expected a tensor"):
            w.data = value
    y = w * w
    w.data.add_(1)
    with pytest.raises(sn.GradientError, match="changed in place"):
        y.sum().backward()


def test_operators_of_booleans():
    a, b = sn.tensor([True, True, False]), sn.tensor([True, False, False])
    assert (a & b).tolist() == [1, 0, 0] and (a | b).tolist() == [1, 1, 0] and (a ^ b).tolist() == [0, 1, 0]
    assert (~a).tolist() == [0, 0, 1]
    with pytest.raises(sn.DtypeError, match=r"np\.bitwise_and: expected arrays"):
        np.array([True] * 3) & b
    for call in (lambda: sn.tensor([1]) & sn.tensor([1]), lambda: ~sn.tensor([1.0])):
        with pytest.raises(sn.DtypeError, match="expected booleans"):
            call()
