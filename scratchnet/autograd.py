"""Reverse-mode differentiation: ops are recorded as they run, and a backward pass walks over that record.

    y = f(x)        apply     runs a row of the op table and notes how y was made: a Node
    y.backward()    backward  sends gradients from the newest node to the oldest: to each input, op.vjp(g, y, *inputs)

Everything that a pass needs to remember lives in dictionaries of that pass, so two passes cannot disturb each other.
The class Tensor stands above: this file asks a tensor at hand to wrap an array in a new one.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from . import checks, hooks, tracing
from .errors import DeviceError, GradientError, ShapeError
from .grad_mode import is_recording, recording
from .half import in_float32
from .kernels import Device
from .ops.operands import ArrayLike, TensorBase, as_operand, copied, prepare, refusal
from .ops.reductions import sum_op
from .ops.table import Op, Tensor
from .row_gradient import RowGradient, total

# --- the record ------------------------------------------------------------------------------------------------------

_clock = itertools.count()


class Node:
    """How one tensor was made: the op, its inputs and parameters, and the output's array.

    `order` grows with time, so a node's inputs always have a smaller one: sorting by it is a topological order.
    `versions` are those of the inputs when they were read; `hooks` see hooks.py.
    """

    __slots__ = ("device", "hooks", "inputs", "op", "order", "out", "params", "versions")

    def __init__(self, op: Op, inputs: tuple[Tensor, ...], params: dict, out: np.ndarray, device: Device):
        self.op, self.params, self.out, self.device = op, params, out, device
        self.inputs: tuple[Tensor, ...] | None = inputs
        self.versions = [t._version if t._base is None else t._base._version for t in inputs]
        self.order = next(_clock)
        self.hooks: tuple[hooks.Entry, ...] = ()

    @property
    def output(self) -> Tensor:
        """The tensor that it made."""
        assert self.inputs is not None
        return self.inputs[0]._wrap(self.out, self.device, self)


def apply(op: Op, *inputs: ArrayLike, **params) -> Tensor:
    """Runs one op and records it if a gradient may be wanted. This is the only place where ops meet tensors."""
    tensors, of_halves = prepare(op, inputs)
    if of_halves:
        op = in_float32(op)
    device = tensors[0]._device
    try:
        out = tracing.current().run(op, device, tensors, params)
    except (TypeError, ValueError) as error:
        raise refusal(op, tensors, error) from None
    node = None
    if is_recording():
        for i, t in enumerate(tensors):
            if t._requires_grad and op.vjps[i] is not None:
                node = Node(op, tensors, params, out, device)
                break
            if t._version == STALE:
                check_view(op.name, t)
    y = tensors[0]._wrap(out, device, node)
    if op.is_view:
        y._base = owner = tensors[0]._owner
        if not owner._requires_grad:
            y._version = STALE
    return y


STALE = -1  # as version of a view: its owner had no record when it was made, so it has none if that gets one


def check_view(name: str, t: Tensor) -> None:
    """Raises GradientError for a view of what has a record since: its gradient would be lost."""
    if t._version == STALE and t._base._requires_grad and t._base._node is not None:
        raise GradientError(
            f"{name}: expected a view made after its tensor was changed in place by a recorded op, got an older one; "
            "make it again, as x[...]"
        )


# --- the backward pass -----------------------------------------------------------------------------------------------


def backward(
    y: Tensor, gradient: ArrayLike | None = None, retain_graph: bool = False, create_graph: bool = False
) -> None:
    """Adds to `.grad` of every leaf that requires grad the gradient of this tensor with respect to it.

    gradient: the gradient of the final result with respect to this tensor; may be left out for one element.
    retain_graph: keep the record, so that `backward` can be called again. It is freed otherwise.
    create_graph: record the pass itself, so that gradients can be differentiated.

    Raises GradientError if there is no record, if it was freed, or if a tensor that it needs was changed in
    place since it was read; ShapeError if `gradient` is missing or does not fit.
    """
    create_graph = checks.flag("backward: create_graph", create_graph)
    retain_graph = checks.flag("backward: retain_graph", retain_graph) or create_graph
    g = initial_gradient(y, gradient)
    found = backpropagate([(y, g)], retain_graph=retain_graph, create_graph=create_graph)
    taken, trace = {id(g._data)}, tracing.current()
    for leaf, leaf_gradient in found.values():
        trace.watch(leaf, "_hooks")
        data, known = leaf_gradient._data, leaf.grad
        if known is not None:
            with recording(create_graph):
                leaf_gradient = total(known, leaf_gradient)
        elif isinstance(leaf_gradient, RowGradient):
            pass
        elif not create_graph and (isinstance(data.base, type(data)) or id(data) in taken):  # on a GPU, too
            leaf_gradient = leaf._wrap(copied(data, data.dtype, leaf._device), leaf._device)  # memory of its own
        taken.add(id(leaf_gradient._data))
        leaf._grad = leaf_gradient


def initial_gradient(y: Tensor, gradient: ArrayLike | None) -> Tensor:
    """The gradient that a backward pass from y starts with: `gradient` if it fits, or 1 for one element."""
    if not y.requires_grad:
        raise GradientError("backward: expected a tensor made from one that requires grad, got one with no record")
    if gradient is None:
        if y._data.size != 1:
            raise ShapeError(f"backward: expected a gradient for a tensor of shape {y.shape}, got none")
        ones = np.empty(y.shape, y.dtype)
        ones.fill(1)
        return y._wrap(y._device.from_host(ones), y._device)
    is_tensor = isinstance(gradient, TensorBase)
    gradient = as_operand(gradient, y)
    if not is_tensor:  # also a number becomes memory of the device
        gradient = y._wrap(y._device.from_host(gradient._data), y._device)
    if gradient.shape != y.shape:
        raise ShapeError(f"backward: expected a gradient of shape {y.shape}, got {gradient.shape}")
    if gradient.device != y.device:
        raise DeviceError(f"backward: expected a gradient on {y.device!r}, got {gradient.device!r}")
    return gradient.astype(y.dtype)


def backpropagate(
    roots: Iterable[tuple[Tensor, Tensor]],
    targets: Sequence[Tensor] = (),
    retain_graph: bool = False,
    create_graph: bool = False,
    among: Callable[[Tensor], bool] | None = None,
    visited: list[tuple[Node, Tensor]] | None = None,
) -> dict[int, tuple[Tensor, Tensor]]:
    """The vector-Jacobian product of roots, tensors with their gradients: a dictionary id -> (tensor, its gradient).

    Without targets it holds every leaf that requires grad; with targets those of them that a root depends on, and
    nothing before the oldest of them is visited. among: of an op's inputs, only those get a gradient for which it is
    true. visited: takes the nodes of the pass, and the gradient of each.
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
        gradients[key] = g if known is None else total(known, g)
        if key in wanted or (node is None and not targets):
            found[key] = wanted.get(key, t)
        elif known is None and node is not None and node.order > oldest:
            heapq.heappush(heap, (-node.order, node))

    with recording(create_graph):
        for y, gradient in roots:
            send(y, gradient)
        while heap:
            _, node = heapq.heappop(heap)
            g = hooks.run(node.hooks, gradients.pop(id(node)))
            if visited is not None:
                visited.append((node, g))
            for t, input_gradient in _vjps(node, g, among):
                send(t, input_gradient)
            if not retain_graph:
                node.inputs = node.out = None  # type: ignore[assignment]  # what only this record held is freed now
        return {
            key: (t, hooks.run(t._hooks if t._node is None else t._node.hooks, gradients[key]))
            for key, t in found.items()
        }


def _vjps(node: Node, g: Tensor, among: Callable[[Tensor], bool] | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The gradients that a node passes on to those of its inputs that want one."""
    inputs, op = node.inputs, node.op
    if inputs is None:
        raise GradientError(
            f"{op.name}: expected a live record, but an earlier backward freed it; use retain_graph=True"
        )
    for t, version in zip(inputs, node.versions, strict=True):
        if (t._version if t._base is None else t._base._version) != version:
            raise GradientError(f"{op.name}: expected its inputs as they were, but one was changed in place since")
    y, params = node.output, node.params
    if op.shared is not None:
        params = params | {"shared": op.shared(g, y, *inputs, **params)}
    for i, t in enumerate(inputs):
        if t._requires_grad and (vjp := op.vjps[i]) is not None and (among is None or among(t)):
            yield t, unbroadcast(vjp(g, y, *inputs, **params), t._data.shape)


def unbroadcast(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """g summed over the axes along which an input of this shape was repeated: broadcasting backwards."""
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    if extra:
        g = sum_op(g, axes=tuple(range(extra)), keepdims=False)
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return sum_op(g, axes=repeated, keepdims=True) if repeated else g


def history(y: Tensor) -> Iterator[tuple[Tensor, Node | None]]:
    """y and the tensors in its record, each node once, with the node that made it."""
    seen, stack = set(), [y]
    while stack:
        t = stack.pop()
        node = t._node
        if node is None:
            yield t, None
        elif id(node) not in seen and node.inputs is not None:
            seen.add(id(node))
            yield t, node
            stack.extend(node.inputs)
