"""NumPy's functions of tensors are ops of the same meaning, or say what to write; nothing loses a record in silence."""

import numpy as np
import pytest

import scratchnet as sn
from scratchnet import numpy_protocol
from scratchnet.testing import gradcheck

pytestmark = pytest.mark.usefixtures("numpy_device")

X = np.array([[0.5, -1.25, 2.0], [1.5, 0.75, -0.5]])
UFUNCS = {name: getattr(np, name) for name in numpy_protocol.UFUNCS}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", UFUNCS)
def test_a_ufunc_of_a_tensor_is_a_tensor(name):
    ufunc = UFUNCS[name]
    others = [] if ufunc.nin == 1 else [np.abs(X.T if name == "matmul" else X) + 0.5]
    x = np.abs(X) if name in ("log", "log2", "log10", "sqrt", "power") else X
    y = ufunc(sn.Tensor(x, requires_grad=True), *others)
    assert type(y) is sn.Tensor
    np.testing.assert_allclose(y.detach().numpy(), ufunc(x, *others), rtol=1e-14)
    if others and name != "matmul":
        np.testing.assert_allclose(ufunc(others[0], sn.Tensor(x)).numpy(), ufunc(others[0], x), rtol=1e-14)


CALLS = {
    "sum": lambda x: np.sum(x, axis=0),
    "mean": lambda x: np.mean(x, axis=(0, 1), keepdims=True),
    "max": lambda x: np.max(x, 1),
    "amin": lambda x: np.amin(x),
    "prod": lambda x: np.prod(x, axis=1),
    "var": lambda x: np.var(x, axis=0),
    "std": lambda x: np.std(x, axis=1, ddof=1),
    "cumsum": lambda x: np.cumsum(x),
    "cumprod": lambda x: np.cumprod(x, axis=1),
    "sort": lambda x: np.sort(x, axis=0),
    "norm": lambda x: np.linalg.norm(x, axis=1),
    "dot": lambda x: np.dot(x, X.T),
    "einsum": lambda x: np.einsum("ij,kj->ik", x, X),
    "outer": lambda x: np.outer(x[0], X[1]),
    "where": lambda x: np.where(X > 0, x, 0.0),
    "clip": lambda x: np.clip(x, -1.0, 1.0),
    "reshape": lambda x: np.reshape(x, (3, 2)),
    "ravel": lambda x: np.ravel(x),
    "transpose": lambda x: np.transpose(x),
    "squeeze": lambda x: np.squeeze(x),
    "expand_dims": lambda x: np.expand_dims(x, 1),
    "swapaxes": lambda x: np.swapaxes(x, 0, 1),
    "moveaxis": lambda x: np.moveaxis(x, 0, 1),
    "broadcast_to": lambda x: np.broadcast_to(x, (2, 2, 3)),
    "flip": lambda x: np.flip(x, 1),
    "roll": lambda x: np.roll(x, 1, axis=0),
    "tril": lambda x: np.tril(x),
    "triu": lambda x: np.triu(x, 1),
    "trace": lambda x: np.trace(x),
    "diagonal": lambda x: np.diagonal(x),
    "a diagonal of a cube": lambda x: np.diagonal(np.stack([x, X, X, X]), offset=-1, axis1=0, axis2=2),
    "concatenate": lambda x: np.concatenate([x, X], axis=1),
    "stack": lambda x: np.stack([X, x]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_of_numpys_is_a_tensor_with_its_gradient(name):
    call = CALLS[name]
    y = call(sn.Tensor(X))
    assert type(y) is sn.Tensor
    np.testing.assert_allclose(y.numpy(), call(X), rtol=1e-14)
    gradcheck(call, [X], max_elements=0)


def test_other_functions_and_other_arguments_take_the_numbers_or_refuse_a_record():
    t, leaf = sn.Tensor(X), sn.Tensor(X, requires_grad=True)
    out = np.empty(3)
    for call in (
        lambda x: np.median(x),
        lambda x: np.sum(x, dtype=np.float32),
        lambda x: np.mean(x, axis=0, out=out),
        lambda x: np.array_equal(x, X),
        lambda x: np.linalg.norm(x, 2),
    ):
        assert not isinstance(call(t), sn.Tensor)
        with pytest.raises(sn.GradientError, match="detach"):
            call(leaf)


@pytest.mark.parametrize(
    "call", [np.arctan, lambda x: np.add(x, x, out=X.copy()), np.add.reduce, lambda x: np.exp(x, where=X > 0)]
)
def test_a_ufunc_that_is_no_op_says_what_to_write(call):
    with pytest.raises(sn.DtypeError, match=r"np\.\w+.*expected arrays, got a Tensor.*x\.detach\(\)\.numpy\(\)"):
        call(sn.Tensor(X))
