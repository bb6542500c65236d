"""Saved models that predict: a file holds weights, the architecture by name and arguments, how features are made, and
the names of the classes. Nothing in it is executed: names are looked up in `scratchnet.nn`, the rest is plain values.

A Trainer's checkpoints hold the same, so `load_model("runs")` needs neither the training data nor its program.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import checks, networks, nn
from .data import DataLoader, PiecewiseLinear, Standardize
from .data.dataset import checked_samples, fields_of
from .data.images import ImageInputs
from .data.rows import check_finite
from .data.series import SeriesInputs
from .data.tables import TableInputs
from .data.text import TextInputs
from .errors import CheckpointError, CheckpointNotFoundError, ConfigError, ScratchnetError, ShapeError
from .formats import checkpoint
from .grad_mode import no_grad
from .random import Generator, using
from .tensor import FLOATS, Tensor

PLAIN = (bool, int, float, str, type(None))
INPUTS: dict[str, Callable[..., Any]] = {
    kind.kind: kind for kind in (TableInputs, ImageInputs, TextInputs, SeriesInputs)
}
MAPPED: dict[str, Callable[..., Any]] = {"standardize": Standardize, "piecewise linear": PiecewiseLinear}
STEPS: dict[str, Callable[..., Any]] = {**INPUTS, **MAPPED, "scale": lambda scale: _Scale(scale)}

# What a model gives, by the loss that it was trained with.
OUTPUTS = {
    "CrossEntropyLoss": "logits",
    "cross_entropy": "logits",
    "NLLLoss": "log-probabilities",
    "nll_loss": "log-probabilities",
    "BCEWithLogitsLoss": "binary logits",
    "binary_cross_entropy_with_logits": "binary logits",
    "BCELoss": "binary probabilities",
    "binary_cross_entropy": "binary probabilities",
}
KINDS = (*dict.fromkeys(OUTPUTS.values()), "values")


# What a file whose checksum fits, but which no `save_model` wrote, may lead to.
FORGED = (ScratchnetError, TypeError, KeyError, AttributeError, ValueError, IndexError, MemoryError, OverflowError)


class _Scale:
    """Numbers times a scale, as float32: what a TensorDataset does."""

    def __init__(self, scale: float):
        self.scale = np.float32(scale)

    def __call__(self, features: Any) -> np.ndarray:
        return checks.array("predict", features).astype(np.float32) * self.scale


# --- what a file says of a model --------------------------------------------------------------------------------------


def describe(model: nn.Module, data: Any = None, outputs: str = "logits") -> dict[str, Any]:
    """All that prediction needs besides the weights, as plain values. What cannot be said stands there with the reason.

    data: the data set of the training, or its loader.
    """
    architecture: dict[str, Any] = {}
    try:
        architecture = {"layers": _layers(model, {}), "dtype": str(_dtype(model))}
        difference = _difference(model, _built(architecture))
    except ScratchnetError as error:
        difference = str(error)
    if difference is not None:
        architecture = {"missing": difference}
    loader = data if isinstance(data, DataLoader) else None
    dataset = loader.dataset if loader is not None else data
    steps = [] if dataset is None else _steps(dataset)
    if loader is not None and loader.collate_fn is not None:
        steps = [{"kind": "collated"}]
    classes = getattr(dataset, "classes", None)
    known = None if classes is None else [str(name) for name in classes]
    return {"architecture": architecture, "steps": steps, "classes": known, "outputs": outputs}


def _layers(module: nn.Module, known: dict[int, int]) -> dict[str, Any]:
    """A module by name and arguments. What is called as a Sequential is described by what it holds.

    known: id -> number of the modules that are described: one that stands in several places is described once.
    """
    if id(module) in known:
        return {"again": known[id(module)]}
    kind = type(module)
    if module._hooks:
        raise ConfigError(f"a hook of {kind.__name__} cannot be saved")
    if "forward" in vars(module) or kind.__call__ is not nn.Module.__call__:
        raise ConfigError(f"a {kind.__name__} that computes in a way of its own cannot be saved")
    if kind.forward is nn.Sequential.forward:
        children = {name: child for name, child in vars(module).items() if isinstance(child, nn.Module)}
        described = {"sequential": {name: _layers(child, known) for name, child in children.items()}}
        known[id(module)] = len(known)
        return described
    if _known(kind.__name__) is not kind:
        raise ConfigError(f"{kind.__name__} is no module of scratchnet.nn")
    if module._arguments is None:
        raise ConfigError(f"the arguments of {kind.__name__} are no plain values")
    args, options = module._arguments
    known[id(module)] = len(known)
    return {"name": kind.__name__, "args": list(args), "options": dict(options)}


def _known(name: str) -> Any:
    """The class of that name that this package offers."""
    return getattr(nn, name, None) or getattr(networks, name, None)


def _dtype(model: nn.Module) -> np.dtype:
    return next((parameter.dtype for parameter in model.parameters()), np.dtype(np.float32))


def _built(architecture: Mapping[str, Any]) -> nn.Module:
    """The model that `_layers` describes, with weights that are still random."""
    with using(Generator(0)):
        model = _module(architecture["layers"], [])
    return model.to(dtype=architecture["dtype"])


def _module(layers: Mapping[str, Any], made: list[nn.Module]) -> nn.Module:
    """The module that `_layers` describes; made: those so far, by their numbers."""
    if "again" in layers:
        return made[layers["again"]]
    if "sequential" in layers:
        module: nn.Module = nn.Sequential({name: _module(one, made) for name, one in layers["sequential"].items()})
    else:
        kind = _known(layers["name"])
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise CheckpointError(f"expected modules of scratchnet.nn, found {layers['name']!r:.60}")
        module = kind(*layers["args"], **layers["options"])
    made.append(module)
    return module


def _difference(model: nn.Module, rebuilt: nn.Module) -> str | None:
    """In what a model differs from the one that its description gives, such as an option that was set later."""
    ours, theirs = (
        [(name, "" if type(m).forward is nn.Sequential.forward else f"{type(m).__name__}({m.extra_repr()})")
         for name, m in one.named_modules()]
        for one in (model, rebuilt)
    )  # fmt: skip
    if ours != theirs:
        name, was = next((pair for pair in ours if pair not in theirs), ours[0])
        return f"{name or 'the model'} was changed after it was made, to {was or 'other layers'}"
    for (name, m), (_, made) in zip(model.named_modules(), rebuilt.named_modules(), strict=True):
        for key, value in options_in(made).items():
            if getattr(m, key, None) != value:
                came = checks.shown(getattr(m, key, None))
                return f"{name or 'the model'} was changed after it was made, to {key}={came}"
    states = [{name: (x.shape, x.dtype) for name, x in one.state_dict().items()} for one in (model, rebuilt)]
    if states[0] != states[1]:
        name = next(iter(dict(states[0].items() ^ states[1].items())))
        return f"{name} was changed after it was made"
    return None


def _steps(dataset: Any) -> list[dict[str, Any]]:
    """What makes features of raw inputs, in order."""
    if hasattr(dataset, "datasets"):
        every = [_steps(part) for part in dataset.datasets]
        same = all(str(steps) == str(every[0]) for steps in every)
        return every[0] if same else [{"kind": "function", "name": "of data sets that were prepared in several ways"}]
    below = getattr(dataset, "dataset", None)
    if below is None:
        inputs, scale = getattr(dataset, "inputs", None), getattr(dataset, "scale", None)
        if inputs is not None:
            return [{"kind": inputs.kind, "state": inputs.state_dict()}]
        return [] if scale is None else [{"kind": "scale", "state": {"scale": float(scale)}}]
    function = getattr(dataset, "function", None)
    if function is None:
        return _steps(below)
    if kind := next((name for name, made in MAPPED.items() if type(function) is made), None):
        return [*_steps(below), {"kind": kind, "state": function.state_dict()}]
    inner = getattr(function, "function", function)  # of one that is called for each row
    return [*_steps(below), {"kind": "function", "name": getattr(inner, "__name__", type(inner).__name__)}]


def outputs_of(loss: Any) -> str:
    """What a model that is trained with this loss gives: one of KINDS."""
    while hasattr(loss, "func"):  # functools.partial
        loss = loss.func
    name = type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", "")
    return OUTPUTS.get(name, "values")


def options_in(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module of this package that are options, whether it prints them or not."""
    plain = {key: x for key, x in vars(module).items() if isinstance(x, bool | int | float | str | tuple)}
    return {key: x for key, x in plain.items() if key not in ("training", "_arguments", "_hooks")}


# --- files ------------------------------------------------------------------------------------------------------------


def save_model(path: str | os.PathLike, model: nn.Module, data: Any = None, outputs: str = "logits") -> None:
    """Write a model, and all that prediction needs, to a file that `load_model` reads.

    data: the data set of the training, or its loader: how features were made and the names of the classes are kept.
    outputs: what the model gives: "logits", "log-probabilities", "binary logits", "binary probabilities" or "values".
    Raises ConfigError for a model that is none of `scratchnet.nn`'s alone, or was changed after it was made, and then
    writes nothing; `sn.save(path, model=model)` keeps the weights of any model. CheckpointError where nothing can be
    written.
    """
    path = checks.path("save_model", path)
    checks.instance("save_model: model", model, nn.Module, "a model")
    if data is not None and not isinstance(data, DataLoader):
        checked_samples("save_model: data", data)
    described = describe(model, data, checks.one_of("save_model: outputs", outputs, KINDS))
    if missing := described["architecture"].get("missing"):
        remedy = "sn.save(path, model=model) keeps the weights, load_model(path, model=...) reads them"
        raise ConfigError(f"save_model: expected a model of scratchnet.nn as it was made, but {missing}; {remedy}")
    checkpoint.save(path, model=model, prediction=described)


def load_model(
    path: str | os.PathLike,
    model: nn.Module | None = None,
    data: Any = None,
    functions: Iterable[Callable[[Any], Any]] = (),
    device: str | None = None,
) -> Predictor:
    """The model in a file of `save_model`, a checkpoint, the newest checkpoint of a run, or that of a folder of runs.

    model: one like the saved one, which gets its weights: needed where the file cannot say how to make it, as for a
    class of your own. data: the data set of the training: needed where the file does not say how features are made.
    functions: those of `dataset.map` and `transform` that a file cannot hold, in their order.
    Raises CheckpointNotFoundError, or CheckpointError, which names what is needed.
    """
    file = newest_checkpoint(path)
    if model is not None:
        checks.instance("load_model: model", model, nn.Module, "a model")
    given = checks.items("load_model: functions", functions, "a list of functions")
    for function in given:
        checks.function("load_model: functions", function)
    state = checkpoint.load(file)
    if not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{file}: expected the weights of a model under 'model', found {', '.join(state):.80}")
    found: dict[str, Any] = state.get("prediction") or {"architecture": {"missing": "an older version wrote the file"}}
    if data is not None or "steps" not in found:
        loss = str(state.get("identity", {}).get("loss", "")).partition("(")[0]
        source = data.dataset if isinstance(data, DataLoader) else data
        steps = None if data is None else _steps(checked_samples("load_model: data", source))
        found = {"outputs": OUTPUTS.get(loss, "values"), "classes": None, **found, "steps": steps}
        found["classes"] = getattr(source, "classes", None) or found["classes"]
    if model is None:
        if missing := found["architecture"].get("missing"):
            raise CheckpointError(
                f"{file}: expected load_model(path, model=...) with a model like the saved one: {missing}"
            )
        try:
            model = _built(found["architecture"])
        except FORGED as error:
            raise CheckpointError(f"{file}: expected a model of this version of scratchnet.nn ({error})") from error
    model.load_state_dict(state["model"])
    try:
        return Predictor(model if device is None else model.to(device), found, given, str(file))
    except FORGED as error:
        if isinstance(error, CheckpointError | ConfigError):
            raise
        found_out = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{file}: expected what this version keeps of inputs ({found_out:.160})") from error


def newest_checkpoint(path: str | os.PathLike) -> Path:
    """A file itself; of a folder of a run, or of several runs, the newest checkpoint."""
    given = Path(checks.path("load_model", path))
    if not given.is_dir():
        return given
    found = list(given.rglob("checkpoint-*.safetensors"))
    if not found:
        raise CheckpointNotFoundError(
            f"{given}: expected a checkpoint, found none; a Trainer with folder=... makes one"
        )
    return max(found, key=lambda file: (file.stat().st_mtime, file.name))


# --- prediction -------------------------------------------------------------------------------------------------------


class Predictor:
    """A trained model together with what makes features of raw inputs: `load_model` returns it.

    classes: the names of the classes, or None. inputs: what makes features of files and raw values (TableInputs,
    ImageInputs, TextInputs), or None. Raw inputs x are: paths or pixels of images; cells of a table; sentences; or, of
    a data set of arrays, rows as it had them. Outputs have one row an input, whatever is predicted beside it.
    """

    def __init__(self, model: nn.Module, found: Mapping[str, Any], functions: Iterable[Callable], name: str):
        self.model, self.name = model.eval(), name
        self.classes = None if found["classes"] is None else tuple(found["classes"])
        self.outputs_are = found["outputs"]
        self._steps: list[Any] | None = None
        self._missing, left = "", list(functions)
        steps = found["steps"]
        if steps is None:
            self._missing = "load_model(path, data=...) with the data set of the training"
            return
        made = []
        for step in steps:
            if step["kind"] == "function":
                if not left:
                    self._missing = (
                        f"load_model(path, functions=[...]) with {step['name']}, by which the data were mapped"
                    )
                    return
                made.append(left.pop(0))
            elif step["kind"] != "collated":
                if step["kind"] not in STEPS:
                    raise CheckpointError(f"{name}: expected inputs of this version, found {step['kind']!r:.60}")
                made.append(STEPS[step["kind"]](**step["state"]))
        if left:
            raise ConfigError(f"load_model: functions: expected {len(functions) - len(left)}, got {len(functions)}")  # type: ignore[arg-type]
        self._steps = made

    @property
    def inputs(self) -> Any:
        """What makes features of files and raw values, or None."""
        return next((step for step in self._made() if getattr(step, "kind", None) in INPUTS), None)

    def _made(self) -> list[Any]:
        if self._steps is None:
            raise CheckpointError(f"{self.name}: expected {self._missing}")
        return self._steps

    def features(self, x: Any) -> Any:
        """Raw inputs as the features that the model takes."""
        for step in self._made():
            x = step(x)
        return x

    def read(self, path: str | os.PathLike) -> tuple[Any, list[str]]:
        """The features of a file (an image, a CSV file, text with a sentence a line), and a name for each row."""
        inputs = self.inputs
        if inputs is None:
            raise CheckpointError(f"{self.name}: expected a model of images, tables or text, found one of plain arrays")
        features, names = inputs.read(path)
        for step in self._made()[1:]:
            features = step(features)
        return features, names

    def outputs(self, x: Any, prepared: bool = False, batch_size: int = 1024) -> np.ndarray:
        """What the model gives for each raw input, in evaluation mode. prepared: x are features already."""
        prepared = checks.flag("predict: prepared", prepared)
        batch_size = checks.integer("predict: batch_size", batch_size, 1)
        features = x if prepared else self.features(x)
        dtype, device = _dtype(self.model), next((parameter.device for parameter in self.model.parameters()), None)

        def tensor(field: Any) -> Tensor:
            array = checks.array("predict", field.detach().numpy() if isinstance(field, Tensor) else field)
            if not array.ndim:
                raise ShapeError("predict: expected rows of features, got a single number")
            return Tensor(array.astype(dtype) if array.dtype in FLOATS else array, device=device)

        is_several = isinstance(features, tuple | dict)
        fields = {name: tensor(field) for name, field in fields_of(features if is_several else (features,))}
        rows = len(next(iter(fields.values())))
        found = []
        with no_grad():
            for i in range(0, max(rows, 1), batch_size):
                part = {name: field[i : i + batch_size] for name, field in fields.items()}
                output = self.model(**part) if isinstance(features, dict) else self.model(*part.values())
                found.append(output.numpy())
        return np.concatenate(found)

    def predict_proba(self, x: Any, prepared: bool = False, batch_size: int = 1024) -> np.ndarray:
        """(n, classes) float64: the probability of each class. Raises ConfigError for a model that gives values."""
        outputs = self.outputs(x, prepared, batch_size).astype(np.float64)
        if self.outputs_are == "values":
            raise ConfigError(f"{self.name}: expected a model of classes, found one of values, by its loss")
        if self.outputs_are.startswith("binary"):
            if outputs.ndim > 1 and outputs.shape[1:] != (1,):
                raise ShapeError(f"predict: expected one output a row for two classes, got {outputs.shape}")
            second = outputs.reshape(-1, 1)
            second = 0.5 + 0.5 * np.tanh(0.5 * second) if self.outputs_are == "binary logits" else second
            return np.concatenate([1 - second, second], axis=1)
        if outputs.ndim != 2:
            raise ShapeError(f"predict: expected outputs (n, classes), got {outputs.shape}; outputs(x) gives them")
        if outputs.shape[1] == 1:
            remedy = "save_model(outputs='binary logits') says that there are two, 'values' that there are none"
            raise ShapeError(f"predict: expected outputs for two classes or more, got one a row; {remedy}")
        if self.classes is not None and outputs.shape[1] != len(self.classes):
            raise ShapeError(f"predict: expected {len(self.classes)} outputs, one a class, got {outputs.shape[1]}")
        shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def predict(self, x: Any, prepared: bool = False, batch_size: int = 1024) -> np.ndarray:
        """(n,): the name, or the number, of the most probable class of each input; of a model of values its outputs.

        Raises DataError for an input of which the model gives NaN, such as one that is NaN itself: it has no class.
        """
        if self.outputs_are == "values":
            return self.outputs(x, prepared, batch_size)
        shares = self.predict_proba(x, prepared, batch_size)
        check_finite(shares, "predict: the outputs of row")
        best = shares.argmax(axis=1)
        return best if self.classes is None else np.array(self.classes)[best]

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f"{len(self.classes)} classes, "
        return f"Predictor({self.name}, {classes}{self.outputs_are}):\n{self.model!r}"
