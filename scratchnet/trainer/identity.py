"""What a run is: all that its arithmetic depends on, besides the states of its parts. A resumed run is the same one."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np

from ..data.dataset import View, gather, meaning_of, selects
from ..kernels import order_of
from ..nn import Module
from ..parallel.model.parts_plan import plan_of
from ..parallel.settings import Settings
from ..parallel.strategies import options_of
from ..precisions import least
from ..predictor import options_in
from ..tensor import Tensor

FIRST, SOME = "first samples", "some samples"  # where their rows are: 8 at the front, 64 from the first to the last
# What a new phase of a run may change: how it goes on. What it is stays: model, optimizer, loss, shards, seed.
OF_A_PHASE = {
    "batch_size", "samples", "shuffle", "sampler", "loader_seed", "drop_last", FIRST, SOME, "accumulate",
    "clip_norm", "nonfinite", "options", "precision", "products", "scheduler", "base_lrs", "schedule", "frozen",
}  # fmt: skip
PARTS = "parts"  # another number of them changes bits, but no checkpoint depends on it
SCHEDULED = "lr", "momentum", "betas"  # what the schedule of somebody else may set
ORDER_VARIABLE = "SCRATCHNET_BFLOAT16"  # chooses among the orders of this CPU, see kernels/cpu/gemm_bfloat16.py


def identity_of(settings: Settings) -> dict[str, Any]:
    """The identity of a run as names and plain values, which a checkpoint keeps."""
    loader, scheduler = settings.loader, settings.scheduler
    return {
        "shards": settings.shards,
        "seed": settings.seed,
        "batch_size": loader.batch_size,
        "samples": len(loader.dataset),
        "shuffle": bool(loader.shuffle),
        "sampler": None if loader.sampler is None else _words(repr(loader.sampler)),
        "loader_seed": loader.seed,
        "drop_last": bool(loader.drop_last),
        FIRST: _digest(settings.loader.dataset, lambda n: range(min(8, n))),
        SOME: _digest(settings.loader.dataset, lambda n: np.linspace(0, n - 1, min(64, n)).astype(np.int64)),
        "accumulate": settings.accumulate,
        "clip_norm": settings.clip_norm,
        "precision": settings.precision,
        "products": _products(settings),
        "nonfinite": "skip" if settings.skip_nonfinite else "raise",
        "devices": list(settings.placement.kinds) if settings.placement.are_mixed else None,
        "model": _words(repr(settings.model)).split("\n"),
        "layers": _layers_of(settings.model),
        "frozen": [name for name, p in settings.model.named_parameters() if not p.requires_grad],
        "loss": _name_of(settings.loss),
        "options of the loss": _options_of_loss(settings.loss),
        "optimizer": type(settings.optimizer).__name__ + " to maximize" * settings.optimizer.maximize,
        "options": _options_of(settings.optimizer, scheduler),
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "base_lrs": getattr(scheduler, "base_lrs", None),
        "schedule": getattr(scheduler, "options", None),
        **options_of(settings.strategy),
        PARTS: _parts_of(settings),
    }


def _parts_of(settings: Settings) -> dict[str, Any]:
    """How the layers of the model are computed by parts."""
    strategy = settings.strategy
    plan = plan_of(settings.model, strategy.parts, strategy.plan)
    return {"parts": strategy.parts, **plan} if strategy.parts > 1 else {}


def parts_line(parts: Mapping[str, Any]) -> str:
    """The parts of an identity, in words."""
    layers = ", ".join(f"{name} by {kind}" for name, kind in parts.items() if name != "parts")
    return f"{parts['parts']} parts ({layers})" if parts else "1 part"


def _products(settings: Settings) -> dict[str, Any] | None:
    """Which products are rounded, and their order of sums, if that depends on the machine; None: none is rounded."""
    if settings.precision == "float32":
        return None
    order = order_of(settings.precision, settings.placement.kinds)
    side, multiplications = least(settings.precision, order)
    return {"order": order, "sides from": side, "multiplications above": multiplications}


def difference(saved: Mapping[str, Any], mine: Mapping[str, Any], may_change: Container[str] = ()) -> str | None:
    """The first thing in which this run is not the saved one, as "expected name=..., as saved, got ..."."""
    for key, name, was, value in _differences(saved, mine):
        if key not in may_change and key != PARTS:
            remedy = (
                "; new_phase=True (--new-phase) goes on from there with the new settings" if key in OF_A_PHASE else ""
            )
            return f"expected {name}={_line(was)}, as saved, got {_line(value)}{remedy}"
    return None


def changes(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """What a new phase changes, as "lr 0.05 -> 0.01, ..."."""
    found = [f"{name} {_line(was)} -> {_line(value)}" for _, name, was, value in _differences(saved, mine)]
    return ", ".join(found) or "nothing changes"


def _differences(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """(key, the name of what differs in it, as saved, now)."""
    for key, value in mine.items():
        if key not in saved or (was := saved[key]) == value or (key in (FIRST, SOME) and was is None):
            continue  # older versions saved less
        name = key
        if isinstance(was, list) and isinstance(value, list) and len(was) == len(value):
            was, value = next((a, b) for a, b in zip(was, value, strict=True) if a != b)
        if isinstance(was, dict) and isinstance(value, dict):
            name = next(k for k in {**was, **value} if was.get(k) != value.get(k))
            was, value = was.get(name), value.get(name)
            if (key, name) == ("products", "order") and was and value:
                name = ORDER_VARIABLE
        yield key, name, was, value


def _digest(dataset: Any, positions: Callable[[int], Any]) -> str | None:
    """Of the samples at `positions` of so many. Of a data set that may draw them at random: of those that it is a view
    of, and of what their numbers mean; None where neither is known."""
    base = dataset
    while isinstance(base, View) and not selects(base):
        base = base.dataset
    arrays = gather(base, positions(len(base))) if selects(base) else ()
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    if base is not dataset or not arrays:
        content += "".join(f"{name}={list(map(str, x))}" for name, x in meaning_of(dataset).items()).encode()
    return hashlib.sha256(content).hexdigest()[:16] if content else None


def _options_of(optimizer: Any, scheduler: Any) -> list[dict[str, Any]]:
    """The options of each group of parameters, without those that the schedule sets."""
    scheduled: Any = () if scheduler is None else SCHEDULED
    if hasattr(scheduler, "values"):
        scheduled = scheduler.values(0, 0)
    groups = getattr(optimizer, "param_groups", [])
    return [{k: v for k, v in group.items() if k != "params" and k not in scheduled} for group in groups]


def _name_of(loss: Callable) -> str:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return _words(repr(loss)) if isinstance(loss, Module) else getattr(loss, "__qualname__", type(loss).__qualname__)


def _layers_of(model: Module) -> list[str]:
    """The options of its layers, also those that they do not print. A class of the user's own may count in them."""
    layers = {name: m for name, m in model.named_modules() if type(m).__module__.startswith("scratchnet.")}
    return [f"{name} {key}={value!r}".strip() for name, m in layers.items() for key, value in options_in(m).items()]


def _options_of_loss(loss: Any) -> dict[str, str]:
    """What a partial binds, and the buffers of a module, such as weights of classes."""
    found: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        found = {str(i): x for i, x in enumerate(loss.args)} | loss.keywords | found
        loss = loss.func
    if isinstance(loss, Module):
        found |= dict(loss.named_buffers())
    return {name: _content(x) for name, x in found.items()}


def _content(value: Any) -> str:
    """A value in words; an array's begin with its first numbers, and tell all."""
    if not isinstance(value, np.ndarray | Tensor):
        return _words(repr(value))
    array = value.detach().to("cpu").numpy() if isinstance(value, Tensor) else value
    numbers = np.array2string(array, threshold=20, floatmode="unique").replace("\n", "")
    return numbers if array.size <= 20 else f"{numbers} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def _words(text: str) -> str:
    """Without the addresses of objects, which differ in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _line(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
