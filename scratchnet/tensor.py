"""Tensor: an array on a device, plus the record of how it was made; and the backward pass over that record.

`Tensor._apply` runs one row of the op table and, if a gradient may be wanted, notes it as a Node.
`backpropagate` walks the nodes from the newest to the oldest. Everything that a pass needs to remember
lives in dictionaries of that pass, so two passes cannot disturb each other.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from . import ops, tracing
from .errors import ConfigError, DeviceError, DtypeError, GradientError, ScratchnetError, ShapeError
from .kernels import Device
from .kernels import device as find_device

ArrayLike = Any  # a Tensor, a NumPy array, a number, or a nested sequence of numbers

_grad_enabled: ContextVar[bool] = ContextVar("grad_enabled", default=True)
_default_device: ContextVar[str] = ContextVar("default_device", default="cpu")
_clock = itertools.count()

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_ALLOWED_KINDS = "fiub"
_new = object.__new__


def is_recording() -> bool:
    """True unless inside `no_grad`."""
    return _grad_enabled.get()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside, nothing is recorded: results have requires_grad False. Also a decorator: `@no_grad()`."""
    with recording(False):
        yield


@contextlib.contextmanager
def recording(enabled: bool) -> Iterator[None]:
    """Inside, ops are recorded or not."""
    token = _grad_enabled.set(enabled)
    try:
        yield
    finally:
        _grad_enabled.reset(token)


class default_device:
    """Sets the device of new tensors ("cpu" at the start): for good when called, for a block in a `with`."""

    def __init__(self, name: str):
        find_device(name)
        self._token = _default_device.set(name)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc_info) -> None:
        _default_device.reset(self._token)


def current_device() -> str:
    """The device of new tensors."""
    return _default_device.get()


class Node:
    """How one tensor was made: the op, its inputs and parameters, and the output's array.

    `order` grows with time, so a node's inputs always have a smaller one: sorting by it is a topological order.
    `versions` are those of the inputs when they were read.
    """

    __slots__ = ("device", "inputs", "op", "order", "out", "params", "versions")

    def __init__(self, op: ops.Op, inputs: tuple[Tensor, ...], params: dict, out: np.ndarray, device: Device):
        self.op, self.params, self.out, self.device = op, params, out, device
        self.inputs: tuple[Tensor, ...] | None = inputs
        self.versions = [t._version if t._base is None else t._base._version for t in inputs]
        self.order = next(_clock)


class Tensor:
    """An n-dimensional array that remembers how it was made.

    data: array-like of numbers. NumPy float32 and float64 keep their type, Python floats become float32,
        integers and booleans stay integers and booleans. A NumPy array is shared, not copied, where it can be.
    requires_grad: record what is done with this tensor, so that `backward` can fill `.grad`. Floats only.
    dtype, device: convert to them; `device` is "cpu" (Numba kernels), "numpy" (the reference) or "cuda" (a GPU, to
        which the data are copied; an array with __cuda_array_interface__, of CuPy or PyTorch, is shared).

    Raises DtypeError for data that are not numbers, DeviceError for an unknown device.
    """

    __slots__ = ("__weakref__", "_base", "_data", "_device", "_node", "_version", "grad", "requires_grad")
    __array_ufunc__ = None  # so that array * tensor is a Tensor

    def __init__(self, data: ArrayLike, requires_grad: bool = False, dtype: Any = None, device: str | None = None):
        self._device = find_device(device or _default_device.get())
        self._data = _placed(data, dtype, self._device)
        self._node: Node | None = None
        self._base: Tensor | None = None
        self._version = 0
        self.grad: Tensor | None = None
        if requires_grad and self._data.dtype not in FLOATS:
            raise DtypeError(f"Tensor: expected float32 or float64 for requires_grad, got {self._data.dtype}")
        self.requires_grad = bool(requires_grad)

    @staticmethod
    def _wrap(data: np.ndarray, device: Device, node: Node | None = None) -> Tensor:
        """A tensor around an array that is known to be good."""
        t = _new(Tensor)
        t._data, t._device, t._node = data, device, node
        t._base = t.grad = None
        t._version = 0
        t.requires_grad = node is not None
        return t

    @staticmethod
    def _apply(op: ops.Op, *inputs: ArrayLike, **params: Any) -> Tensor:
        """Runs one op and records it. This is the only place where ops meet tensors."""
        tensors = _prepare(op, inputs)
        device = tensors[0]._device
        written = tracing.current()
        try:
            if written is None:
                out = op.forward(device, *[t._data for t in tensors], **params)
            else:
                out = op.forward(written.on(device), *[t._data for t in tensors], **params)
                _watch(written, tensors)
        except (TypeError, ValueError) as error:
            raise _refusal(op, tensors, error) from None
        node = None
        if _grad_enabled.get():
            for i, t in enumerate(tensors):
                if t.requires_grad and op.vjp(i) is not None:
                    node = Node(op, tensors, params, out, device)
                    break
        y = Tensor._wrap(out, device, node)
        if op.is_view:
            y._base = tensors[0]._owner
        return y

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._data.size

    @property
    def device(self) -> str:
        return self._device.name

    @property
    def is_leaf(self) -> bool:
        """True unless an op that recorded itself made this tensor."""
        return self._node is None

    @property
    def _owner(self) -> Tensor:
        """The tensor whose memory this one looks at."""
        return self if self._base is None else self._base

    def item(self) -> float | int | bool:
        """The one element, as a Python number. Raises ShapeError if there are more or none."""
        if self.size != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}")
        tracing.refuse("item", self._data, self.requires_grad)
        return self._data.item()

    def numpy(self) -> np.ndarray:
        """The array itself (shared memory), or a copy of one that is on a GPU.

        Raises GradientError if the tensor requires grad: use .detach() first.
        """
        if self.requires_grad:
            raise GradientError("numpy: expected a tensor that does not require grad; call .detach() first")
        tracing.refuse("numpy", self._data)
        return self._device.to_host(self._data)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """By which CuPy, PyTorch and Numba share the memory of a tensor on a GPU; others have no such attribute."""
        if self._device.is_host:
            raise AttributeError(f"__cuda_array_interface__: expected a tensor on 'cuda', got one on {self.device!r}")
        return self._data.__cuda_array_interface__  # type: ignore[attr-defined]

    def __dlpack__(self, **options: Any) -> Any:
        """A DLPack capsule that shares the memory. Raises GradientError if the tensor requires grad."""
        if self.requires_grad:
            raise GradientError("__dlpack__: expected a tensor that does not require grad; call .detach() first")
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_function__(self, function: Callable, types: Any, args: tuple, kwargs: dict) -> Any:
        """NumPy's functions take the numbers of a tensor, and return arrays."""
        if function in (np.shape, np.ndim, np.size) and args and args[0] is self:  # these do not look at the numbers
            return function(self._data, *args[1:], **kwargs)
        return function(*_without_tensors(args), **_without_tensors(kwargs))

    def detach(self) -> Tensor:
        """The same memory without the record."""
        t = Tensor._wrap(self._data, self._device)
        t._base = self._owner
        return t

    def to(self, device: str) -> Tensor:
        """This tensor on another device; itself if it is there already. Gradients travel back."""
        target = find_device(device)
        if target is self._device:
            return self
        data = self._data
        shared = target.is_host and self._device.is_host  # the host devices share memory
        if not shared:
            tracing.refuse("to", data)
            data = target.from_host(self._device.to_host(data))
        node = None
        if self.requires_grad and _grad_enabled.get():
            node = Node(_to_device, (self,), {}, data, target)
        t = Tensor._wrap(data, target, node)
        t._base = self._owner if shared else None
        return t

    def astype(self, dtype: Any) -> Tensor:
        """This tensor in another dtype; itself if it has it already."""
        dtype = _checked_dtype(np.dtype(dtype))
        if dtype == self.dtype:
            return self
        if dtype in FLOATS:
            return ops.cast(self, dtype=dtype)
        return Tensor._wrap(_copied(self._data, dtype, self._device), self._device)

    def __repr__(self) -> str:
        body = np.array2string(self._device.to_host(self._data), separator=", ", prefix="Tensor(", threshold=100)
        notes = [f"dtype={self.dtype}"] * (self.dtype not in (np.float32, np.int64, np.bool_))
        notes += [f"device={self.device!r}"] * (self.device != _default_device.get())
        notes += ["requires_grad=True"] * self.requires_grad
        return f"Tensor({', '.join([body, *notes])})"

    def __len__(self) -> int:
        if not self.ndim:
            raise ShapeError("len: expected at least one dimension, got shape ()")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise DtypeError(f"index: expected an integer tensor, got {self.dtype}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self._node is not None:
            raise GradientError("deepcopy: expected a leaf tensor, got the result of an op; call .detach() first")
        copy = _rebuild(type(self), self._data.copy(), self.requires_grad, self.device)
        copy.grad = None if self.grad is None else self.grad.__deepcopy__(memo)
        return copy

    def __reduce__(self):
        return _rebuild, (type(self), self.detach().numpy(), self.requires_grad, self.device)

    # --- gradients ----------------------------------------------------------------------------------------------

    def backward(
        self, gradient: ArrayLike | None = None, retain_graph: bool = False, create_graph: bool = False
    ) -> None:
        """Adds to `.grad` of every leaf that requires grad the gradient of this tensor with respect to it.

        gradient: the gradient of the final result with respect to this tensor; may be left out for one element.
        retain_graph: keep the record, so that `backward` can be called again. It is freed otherwise.
        create_graph: record the pass itself, so that gradients can be differentiated.

        Raises GradientError if there is no record, if it was freed, or if a tensor that it needs was changed in
        place since it was read; ShapeError if `gradient` is missing or does not fit.
        """
        g = initial_gradient(self, gradient)
        found = backpropagate(self, g, retain_graph=retain_graph or create_graph, create_graph=create_graph)
        taken = {id(g._data)}
        for leaf, leaf_gradient in found.values():
            tracing.touch(leaf)
            if leaf.grad is not None:
                with recording(create_graph):
                    leaf_gradient = leaf.grad + leaf_gradient
            elif not create_graph and (
                isinstance(leaf_gradient._data.base, np.ndarray) or id(leaf_gradient._data) in taken
            ):
                data = leaf_gradient._data
                leaf_gradient = Tensor._wrap(_copied(data, data.dtype, leaf._device), leaf._device)  # memory of its own
            taken.add(id(leaf_gradient._data))
            leaf.grad = leaf_gradient

    def zero_grad(self) -> None:
        """Forgets the gradient."""
        tracing.zeroed(self)
        self.grad = None

    # --- operators ----------------------------------------------------------------------------------------------

    def __add__(self, other: ArrayLike) -> Tensor:
        return ops.add(self, other)

    def __radd__(self, other: ArrayLike) -> Tensor:
        return ops.add(self, other)

    def __sub__(self, other: ArrayLike) -> Tensor:
        return ops.sub(self, other)

    def __rsub__(self, other: ArrayLike) -> Tensor:
        return Tensor._apply(ops.OPS["sub"], other, self)

    def __mul__(self, other: ArrayLike) -> Tensor:
        return ops.mul(self, other)

    def __rmul__(self, other: ArrayLike) -> Tensor:
        return ops.mul(self, other)

    def __truediv__(self, other: ArrayLike) -> Tensor:
        return ops.div(self, other)

    def __rtruediv__(self, other: ArrayLike) -> Tensor:
        return Tensor._apply(ops.OPS["div"], other, self)

    def __pow__(self, other: ArrayLike) -> Tensor:
        return ops.pow(self, other)

    def __rpow__(self, other: ArrayLike) -> Tensor:
        return Tensor._apply(ops.OPS["pow"], other, self)

    def __matmul__(self, other: ArrayLike) -> Tensor:
        return ops.matmul(self, as_tensor(other, self))

    def __rmatmul__(self, other: ArrayLike) -> Tensor:
        return ops.matmul(as_tensor(other, self), self)

    def __neg__(self) -> Tensor:
        return ops.neg(self)

    def __abs__(self) -> Tensor:
        return ops.abs(self)

    def __lt__(self, other: ArrayLike) -> Tensor:
        return ops.lt(self, other)

    def __le__(self, other: ArrayLike) -> Tensor:
        return ops.le(self, other)

    def __gt__(self, other: ArrayLike) -> Tensor:
        return ops.gt(self, other)

    def __ge__(self, other: ArrayLike) -> Tensor:
        return ops.ge(self, other)

    def __eq__(self, other: ArrayLike) -> Tensor:  # type: ignore[override]
        return ops.eq(self, other)

    def __ne__(self, other: ArrayLike) -> Tensor:  # type: ignore[override]
        return ops.ne(self, other)

    __hash__ = object.__hash__

    def __getitem__(self, key: Any) -> Tensor:
        parts = key if isinstance(key, tuple) else (key,)
        if any(isinstance(p, Tensor) for p in parts):
            parts = tuple(p._data if isinstance(p, Tensor) else p for p in parts)
            key = parts if isinstance(key, tuple) else parts[0]
        return ops.index(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise GradientError("a Tensor is not changed in place: expected sn.where(condition, a, b), got item assignment")

    # --- elementwise --------------------------------------------------------------------------------------------

    def exp(self) -> Tensor:
        """e to the power of each element."""
        return ops.exp(self)

    def log(self) -> Tensor:
        """Natural logarithm; -inf at 0, NaN below."""
        return ops.log(self)

    def sqrt(self) -> Tensor:
        """Square root; NaN below 0."""
        return ops.sqrt(self)

    def abs(self) -> Tensor:
        """Absolute value; gradient 0 at 0."""
        return ops.abs(self)

    def sign(self) -> Tensor:
        """-1, 0 or 1; not differentiable."""
        return ops.sign(self)

    def tanh(self) -> Tensor:
        """Hyperbolic tangent."""
        return ops.tanh(self)

    def sigmoid(self) -> Tensor:
        """1 / (1 + exp(-x)), without overflow."""
        return ops.sigmoid(self)

    def relu(self) -> Tensor:
        """max(x, 0); gradient 0 at 0."""
        return ops.relu(self)

    def gelu(self) -> Tensor:
        """x * Phi(x), Phi the normal distribution function (the exact form, not the tanh approximation)."""
        return ops.gelu(self)

    def erf(self) -> Tensor:
        """The error function."""
        return ops.erf(self)

    def softplus(self) -> Tensor:
        """log(1 + exp(x)), without overflow."""
        return ops.softplus(self)

    def clip(self, low: float | None = None, high: float | None = None) -> Tensor:
        """x limited to [low, high]; gradient 1 on the bounds, 0 outside."""
        limits = np.finfo(self.dtype) if self.dtype.kind == "f" else np.iinfo(self.dtype)
        infinite = self.dtype.kind == "f"
        low = (-np.inf if infinite else limits.min) if low is None else low
        high = (np.inf if infinite else limits.max) if high is None else high
        for bound in (low, high):
            as_tensor(bound, self)  # DtypeError if it does not fit
        if low > high:
            raise ConfigError(f"clip: expected low <= high, got {low} and {high}")
        return ops.clip(self, low=low, high=high)

    def maximum(self, other: ArrayLike) -> Tensor:
        """The larger of two, elementwise; equal elements share the gradient."""
        return ops.maximum(self, other)

    def minimum(self, other: ArrayLike) -> Tensor:
        """The smaller of two, elementwise; equal elements share the gradient."""
        return ops.minimum(self, other)

    def where(self, a: ArrayLike, b: ArrayLike) -> Tensor:
        """a where this (boolean) tensor is true, else b."""
        return where(self, a, b)

    # --- reductions ---------------------------------------------------------------------------------------------

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Sum over axes."""
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Arithmetic mean over axes."""
        return ops.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Largest element over axes; ties share the gradient."""
        return ops.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Smallest element over axes; ties share the gradient."""
        return ops.min(self, axis, keepdims)

    def var(self, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
        """Variance over axes, divided by n - ddof."""
        return ops.var(self, axis, keepdims, ddof)

    def std(self, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
        """Standard deviation over axes."""
        return ops.std(self, axis, keepdims, ddof)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """int64 index of the first largest element."""
        return ops.argmax(self, axis, keepdims)

    def softmax(self, axis: int = -1) -> Tensor:
        """exp(x) / sum(exp(x)) along an axis."""
        return ops.softmax(self, axis)

    def log_softmax(self, axis: int = -1) -> Tensor:
        """log(softmax(x)) along an axis."""
        return ops.log_softmax(self, axis)

    def logsumexp(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """log(sum(exp(x))) over axes."""
        return ops.logsumexp(self, axis, keepdims)

    # --- shape --------------------------------------------------------------------------------------------------

    @property
    def T(self) -> Tensor:
        """The matrix transposed (all axes reversed), a view."""
        return ops.permute(self, axes=tuple(range(self.ndim))[::-1])

    def reshape(self, *shape: Any) -> Tensor:
        """Another shape of as many elements; one length may be -1. A view where NumPy can give one."""
        return ops.view(self, _as_shape(shape))

    def transpose(self, a: int, b: int) -> Tensor:
        """Two axes exchanged, a view."""
        return ops.swap_axes(self, a, b)

    def permute(self, *axes: Any) -> Tensor:
        """All axes in the given order, a view."""
        return ops.order_axes(self, _as_shape(axes))

    def squeeze(self, axis: int | None = None) -> Tensor:
        """Without axes of length 1, a view."""
        return ops.squeeze(self, axis)

    def unsqueeze(self, axis: int) -> Tensor:
        """With a new axis of length 1, a view."""
        return ops.unsqueeze(self, axis)

    def broadcast_to(self, *shape: Any) -> Tensor:
        """Repeated to a larger shape, a view."""
        return ops.expand(self, _as_shape(shape))

    def pad(self, widths: Any, value: float = 0) -> Tensor:
        """With `value` around it; widths as in np.pad."""
        return ops.pad(self, widths, value)

    def matmul(self, other: ArrayLike) -> Tensor:
        """Matrix product, as `@`."""
        return self @ other


# --- making tensors ----------------------------------------------------------------------------------------------


def tensor(data: ArrayLike, requires_grad: bool = False, dtype: Any = None, device: str | None = None) -> Tensor:
    """A Tensor with memory of its own; arguments as for Tensor."""
    return Tensor(np.array(_as_array(data, dtype)), requires_grad, None, device)


def as_tensor(x: ArrayLike, like: Tensor | None = None) -> Tensor:
    """x itself if it is a Tensor, else a Tensor around it. Numbers take the float dtype and the device of `like`."""
    if isinstance(x, Tensor):
        return x
    if like is None:
        return Tensor(x)
    if isinstance(x, int | float | np.number) and not isinstance(x, bool):
        exact = like._data.dtype.kind in "iu" and isinstance(x, int | np.integer)
        if exact or (like._data.dtype.kind == "f" and not isinstance(x, np.complexfloating)):
            try:
                return Tensor._wrap(np.array(x, like._data.dtype), like._device)
            except OverflowError:
                bits = x.bit_length() if isinstance(x, int) else 0
                got = f"an integer of {bits} bits" if bits > 64 else x
                raise DtypeError(f"Tensor: expected a number that fits {like._data.dtype}, got {got}") from None
    return Tensor._wrap(_placed(x, None, like._device), like._device)


def where(condition: ArrayLike, a: ArrayLike, b: ArrayLike) -> Tensor:
    """a where condition (boolean) is true, else b; all three broadcast."""
    tensors = [x for x in (a, b, condition) if isinstance(x, Tensor)]
    like = tensors[0] if tensors else as_tensor(a)
    condition = as_tensor(condition, like)
    if condition.dtype != np.bool_:
        raise DtypeError(f"where: expected a boolean condition, got {condition.dtype}")
    return ops.where(condition, as_tensor(a, like), as_tensor(b, like))


def _placed(data: ArrayLike, dtype: Any, device: Device) -> np.ndarray:
    """The array of a tensor on `device`, made of any data."""
    if not device.is_host:
        if isinstance(data, Tensor):
            data = data.detach().to(device.name)._data
        if hasattr(data, "__cuda_array_interface__"):
            array = device.from_host(data)
            return array if dtype is None or array.dtype == dtype else _copied(array, np.dtype(dtype), device)
    return device.from_host(_as_array(data, dtype))


def _as_array(data: ArrayLike, dtype: Any) -> np.ndarray:
    if isinstance(data, Tensor):
        data = data._device.to_host(data._data)
    elif isinstance(data, list | tuple) and any(isinstance(item, Tensor) for item in data):
        data = [item.detach().numpy() if isinstance(item, Tensor) else item for item in data]
    from_python = not isinstance(data, np.ndarray | np.generic) and not hasattr(data, "__array__")
    try:
        array = np.asarray(data)
    except ValueError as error:  # ragged lists
        raise ShapeError(f"Tensor: expected a rectangular array of numbers, got {str(error).splitlines()[0]}") from None
    if array.dtype.kind not in _ALLOWED_KINDS:
        raise DtypeError(f"Tensor: expected numbers, got dtype {array.dtype}")
    if dtype is None and from_python and array.dtype == np.float64:
        dtype = np.float32
    target = _checked_dtype(np.dtype(dtype) if dtype is not None else array.dtype.newbyteorder("="))
    return array.astype(target, copy=False)


def _checked_dtype(dtype: np.dtype) -> np.dtype:
    if dtype.kind not in _ALLOWED_KINDS or (dtype.kind == "f" and dtype not in FLOATS):
        raise DtypeError(f"Tensor: expected float32, float64, integers or booleans, got dtype {dtype}")
    return dtype


def _copied(data: np.ndarray, dtype: np.dtype, device: Device) -> np.ndarray:
    device = tracing.active(device)
    out = device.empty(data.shape, dtype)
    device.copy(data, out)
    return out


def _watch(written: tracing.Trace, tensors: tuple[Tensor, ...]) -> None:
    """A program reads parameters and buffers where they lay when it was recorded."""
    for t in tensors:
        if t._node is None and (t.requires_grad or type(t) is not Tensor):
            written.watch(t, "_data")


def _without_tensors(x: Any) -> Any:
    """x with arrays in place of tensors; GradientError for one that requires grad."""
    if isinstance(x, Tensor):
        return x.numpy()
    if isinstance(x, dict):
        return {name: _without_tensors(item) for name, item in x.items()}
    return type(x)([_without_tensors(item) for item in x]) if type(x) in (tuple, list) else x


def _as_shape(args: tuple) -> tuple[int, ...]:
    """Lengths given one by one, or as one sequence."""
    if len(args) == 1 and isinstance(args[0], Sequence):
        args = tuple(args[0])
    return tuple(int(n) for n in args)


def _rebuild(cls: type, data: np.ndarray, requires_grad: bool, device: str) -> Tensor:
    t: Tensor = _new(cls)
    Tensor.__init__(t, data, requires_grad, None, device)
    return t


# --- applying an op -----------------------------------------------------------------------------------------------


def _prepare(op: ops.Op, inputs: tuple) -> tuple[Tensor, ...]:
    """The inputs as tensors of one device, those that the op promotes in one dtype."""
    like = inputs[0] if isinstance(inputs[0], Tensor) else next(x for x in inputs if isinstance(x, Tensor))
    device, dtype = like._device, like._data.dtype
    if dtype is FLOATS[0] or dtype is FLOATS[1]:  # the usual case: tensors of one dtype, and Python numbers
        weak = False
        for x in inputs:
            if isinstance(x, Tensor):
                if x._data.dtype is not dtype or x._device is not device:
                    break
            elif type(x) is float or type(x) is int:
                weak = True
            else:
                break
        else:
            if not weak:
                return inputs
            with contextlib.suppress(OverflowError):  # an integer that no float holds is refused below
                return tuple([x if isinstance(x, Tensor) else Tensor._wrap(np.array(x, dtype), device) for x in inputs])
    like = next((x for x in inputs if isinstance(x, Tensor) and x._data.dtype.kind == "f"), like)
    tensors = tuple([x if isinstance(x, Tensor) else as_tensor(x, like) for x in inputs])
    for x in tensors:
        if x._device is not device:
            raise DeviceError(f"{op.name}: expected one device, got {device.name!r} and {x.device!r}; use .to(...)")
    return _promote(op, tensors)


def _promote(op: ops.Op, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    group = range(len(inputs)) if op.promotes is None else op.promotes
    dtypes = {inputs[i]._data.dtype for i in group}
    floats = [dtype for dtype in dtypes if dtype.kind == "f"]
    if len(floats) > 1:
        raise DtypeError(f"{op.name}: expected one float dtype, got float32 and float64; use .astype(...)")
    if len(dtypes) == 1 and (floats or not op.floating):
        return inputs
    if floats:
        target = floats[0]
    elif op.floating:
        target = np.dtype(np.float32)
    else:
        target = np.result_type(*dtypes)
        if target.kind == "f":  # NumPy has no integer type that holds both
            raise DtypeError(f"{op.name}: expected integers of one kind, got {', '.join(sorted(map(str, dtypes)))}")
    return tuple(t.astype(target) if i in group else t for i, t in enumerate(inputs))


def _refusal(op: ops.Op, tensors: tuple[Tensor, ...], error: Exception) -> Exception:
    """What to raise for an error of a forward: DtypeError where NumPy has no such function of integers or booleans."""
    if isinstance(error, ScratchnetError) or any(t._data.dtype.kind == "f" for t in tensors):
        return error
    dtypes = " and ".join(str(t._data.dtype) for t in tensors)
    return DtypeError(f"{op.name}: expected floats, got {dtypes} ({str(error).splitlines()[0]})")


_to_device = ops.Op("to", lambda device, x: x, (lambda g, y, x: g.to(x.device),))


# --- the backward pass ----------------------------------------------------------------------------------------------


def initial_gradient(y: Tensor, gradient: ArrayLike | None) -> Tensor:
    """The gradient that a backward pass from y starts with: `gradient` if it fits, or 1 for one element."""
    if not y.requires_grad:
        raise GradientError("backward: expected a tensor made from one that requires grad, got one with no record")
    if gradient is None:
        if y.size != 1:
            raise ShapeError(f"backward: expected a gradient for a tensor of shape {y.shape}, got none")
        one = np.array(1, y.dtype) if y.ndim == 0 else np.ones(y.shape, y.dtype)
        return Tensor._wrap(y._device.from_host(one), y._device)
    if not isinstance(gradient, Tensor):
        gradient = Tensor._wrap(y._device.from_host(as_tensor(gradient, y)._data), y._device)
    if gradient.shape != y.shape:
        raise ShapeError(f"backward: expected a gradient of shape {y.shape}, got {gradient.shape}")
    if gradient.device != y.device:
        raise DeviceError(f"backward: expected a gradient on {y.device!r}, got {gradient.device!r}")
    return gradient.astype(y.dtype)


def backpropagate(
    y: Tensor,
    gradient: Tensor,
    targets: Sequence[Tensor] = (),
    retain_graph: bool = False,
    create_graph: bool = False,
) -> dict[int, tuple[Tensor, Tensor]]:
    """The vector-Jacobian product of y: a dictionary id -> (tensor, its gradient).

    Without targets it holds every leaf that requires grad; with targets those of them that y depends on, and
    nothing before the oldest of them is visited.
    """
    gradients: dict[int, Tensor] = {}  # of tensors, by the node that made them, or by the leaf itself
    found: dict[int, Tensor] = {}
    heap: list[tuple[int, Node]] = []
    wanted = {id(t._node or t): t for t in targets}
    oldest = min((t._node.order if t._node else -1 for t in targets), default=-1)

    def send(t: Tensor, g: Tensor) -> None:
        node = t._node
        key = id(node or t)
        known = gradients.get(key)
        gradients[key] = g if known is None else known + g
        if key in wanted or (node is None and not targets):
            found[key] = wanted.get(key, t)
        elif known is None and node is not None and node.order > oldest:
            heapq.heappush(heap, (-node.order, node))

    with recording(create_graph):
        send(y, gradient)
        while heap:
            _, node = heapq.heappop(heap)
            g = gradients.pop(id(node))
            for t, input_gradient in _vjps(node, g):
                send(t, input_gradient)
            if not retain_graph:
                node.inputs = node.out = None  # type: ignore[assignment]  # what only this record held is freed now
    return {key: (t, gradients[key]) for key, t in found.items()}


def _vjps(node: Node, g: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The gradients that a node passes on to those of its inputs that want one."""
    inputs, op = node.inputs, node.op
    if inputs is None:
        raise GradientError(
            f"{op.name}: expected a live record, but an earlier backward freed it; use retain_graph=True"
        )
    for t, version in zip(inputs, node.versions, strict=True):
        if (t._version if t._base is None else t._base._version) != version:
            raise GradientError(f"{op.name}: expected its inputs as they were, but one was changed in place since")
    y = Tensor._wrap(node.out, node.device, node)
    for i, t in enumerate(inputs):
        if t.requires_grad and (vjp := op.vjp(i)) is not None:
            yield t, unbroadcast(vjp(g, y, *inputs, **node.params), t.shape)


def unbroadcast(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """g summed over the axes along which an input of this shape was repeated: broadcasting backwards."""
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    if extra:
        g = g.sum(tuple(range(extra)))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(repeated, keepdims=True) if repeated else g
