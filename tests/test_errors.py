"""Whatever is handed to the public face by mistake is refused in one typed line, or has a meaning: by table.

Each argument of each public callable is replaced in turn by each of the mistakes in helpers/public_face.py.
"""

import inspect
import types
import warnings
from collections.abc import Iterator

import numpy as np
import public_face
import pytest
from messages import error_line
from public_face import EXAMPLES, MISTAKES, SPACES

import scratchnet as sn
from scratchnet import nn
from scratchnet.nn import functional as F


def public() -> Iterator[tuple[str, object]]:
    """(name, callable) of all that is public: functions, classes and the methods that classes have of their own."""
    for space, module in SPACES.items():
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and n[0] != "_"]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            if isinstance(value, types.ModuleType) or not callable(value):
                continue
            if isinstance(value, type) and issubclass(value, BaseException):
                continue
            yield f"{space}.{name}", value
            for method in vars(value) if isinstance(value, type) else ():
                is_op = value is sn.Tensor and method in sn.functions.__all__
                if not method.startswith("_") and not is_op and inspect.isroutine(getattr(value, method)):
                    yield f"{space}.{name}.{method}", getattr(value, method)


PUBLIC = dict(public())


def parameters_of(function):
    """Of a class: those of its constructor."""
    if isinstance(function, type):
        make = function.__new__ if function.__init__ is object.__init__ else function.__init__
        return dict(list(inspect.signature(make).parameters.items())[1:])
    return inspect.signature(function).parameters


def call(function, arguments):
    """Calls it; generators and contexts are run, too."""
    given, named = [], {}
    for name, parameter in parameters_of(function).items():
        if name in arguments and parameter.kind == parameter.VAR_POSITIONAL:
            given += arguments[name]
        elif name in arguments and parameter.kind == parameter.VAR_KEYWORD:
            named |= arguments[name]
        elif name in arguments and parameter.kind == parameter.KEYWORD_ONLY:
            named[name] = arguments[name]
        elif name in arguments:
            given.append(arguments[name])
    result = function(*given, **named)
    if hasattr(result, "__next__"):
        list(result)
    elif hasattr(result, "__enter__"):
        with result:
            pass


def test_everything_public_has_a_valid_call():
    """A new public name needs one in helpers/public_face.py."""
    asked = {
        name
        for name in PUBLIC.keys() - EXAMPLES.keys() - public_face.NOT_CALLED.keys()
        if name.split(".")[-1] not in public_face.INTERNAL and not name.startswith(public_face.INTERNAL_OF)
    }
    assert not asked
    assert not EXAMPLES.keys() - PUBLIC.keys()


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A folder for what is written, and the settings of the process as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(public_face, "FOLDER", str(tmp_path))
    threads = sn.get_num_threads()
    yield
    sn.set_num_threads(threads)
    sn.default_device("cpu")
    sn.manual_seed(0)


def replaced(function, arguments, name, mistake):
    kind = parameters_of(function)[name].kind
    if kind == inspect.Parameter.VAR_POSITIONAL:
        return arguments | {name: (mistake, *arguments[name][1:])}
    if kind == inspect.Parameter.VAR_KEYWORD:
        return arguments | {name: {next(iter(arguments[name])): mistake}}
    return arguments | {name: mistake}


@pytest.mark.parametrize("space", SPACES)
def test_a_mistake_in_any_argument_is_refused_in_one_line_or_has_a_meaning(space, elsewhere):
    unclear = []
    for name in EXAMPLES:
        if name.split(".")[0] != space:
            continue
        call(PUBLIC[name], EXAMPLES[name]())
        for argument, valid in EXAMPLES[name]().items():
            if argument == "self" or (name, argument) in public_face.HANDED_ON:
                continue
            wrong = public_face.WRONG_FOR.get(type(valid), ()) if name not in public_face.ANY_NUMBER else ()
            for what, make in MISTAKES.items():
                if (name, argument, what) not in public_face.ENDLESS:
                    given = replaced(PUBLIC[name], EXAMPLES[name](), argument, make())
                    if (problem := _problem(PUBLIC[name], given, what in wrong)) is not None:
                        unclear.append(f"{name}({argument}={what}): {problem}")
    assert not unclear, "\n".join(unclear)


def _problem(function, arguments, is_wrong):
    """What is bad about the answer to a mistake; None if it was refused in one line, or accepted where it may be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(function, arguments)
    except sn.ScratchnetError as error:
        text = str(error)
        speaks = "expected" in text or "no such file" in text
        return None if speaks and "\n" not in text and " at 0x" not in text and len(text) < 300 else repr(text)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]!r}"
    return "accepted" if is_wrong else None


class FromPyTorch(np.ndarray):
    """Stands for torch.Tensor, which is known by the name of its module."""


FromPyTorch.__module__ = "torch"


def assigned(value):
    nn.Linear(2, 2).scale = value


FIRST_ERRORS = {  # a beginner's mistake: the call, and the remedy that its line must name
    "float64 data": (lambda: sn.tensor(np.ones((4, 3))) @ nn.Linear(3, 2).weight, ".astype('float32')"),
    "float labels": (lambda: F.cross_entropy(np.eye(2, dtype="float32"), np.array([0.0, 1.0])), "astype('int64')"),
    "one-hot labels": (lambda: F.cross_entropy(np.eye(2, dtype="float32"), np.eye(2, dtype=int)), "argmax(1)"),
    "labels from 1": (lambda: F.cross_entropy(np.eye(2, dtype="float32"), np.array([1, 2])), "[0, 2), got 2"),
    "other features": (lambda: nn.Linear(3, 2)(np.ones((4, 5), "float32")), "(4, 5) and (3, 2)"),
    "a tensor as a parameter": (lambda: assigned(sn.Tensor([1.0], requires_grad=True)), "nn.Parameter(...)"),
    "a class as a layer": (lambda: nn.Sequential(nn.ReLU), "write ReLU(...)"),
    "a list of layers": (lambda: nn.Sequential([nn.ReLU()]), "Sequential(*layers)"),
    "a list of sizes": (lambda: nn.MLP([4, 2]), "MLP(*sizes)"),
    "a dtype as a device": (lambda: sn.Tensor([1.0]).to("float64"), ".astype(...)"),
    "NumPy's arctan": (lambda: np.arctan(sn.Tensor([1.0])), "x.detach().numpy()"),
    "a gradient of NumPy": (lambda: setattr(nn.Parameter([1.0]), "grad", np.ones(1)), "sn.Tensor(...)"),
    "a state of PyTorch": (
        lambda: nn.Linear(2, 2, bias=False).load_state_dict({"weight": np.eye(2, dtype="float32").view(FromPyTorch)}),
        "scratchnet.pytorch.load_state_dict",
    ),
    "PyTorch's SGD(lr, momentum, dampening)": (lambda: sn.optim.SGD([nn.Parameter([1.0])], 0.1, 0.9, 0.01), "nesterov"),
}


@pytest.mark.parametrize("what", FIRST_ERRORS)
def test_a_first_error_names_the_remedy(what):
    make, remedy = FIRST_ERRORS[what]
    with pytest.raises(sn.ScratchnetError) as caught:
        make()
    assert remedy in error_line(caught)


def test_numpy_arrays_and_tensors_share_operators():
    array, t = np.array([1.0, 2.0], np.float32), sn.Tensor([3.0, 4.0])
    for made, expected in (
        (array * t, [3, 8]),
        (array - t, [-2, -2]),
        (array < t, [1, 1]),
        (np.float32(2) * t, [6, 8]),
    ):
        assert isinstance(made, sn.Tensor)
        np.testing.assert_array_equal(made.numpy(), expected)
    assert (array @ t).item() == 11
    assert round(sn.Tensor(1.234), 2) == round(float(np.float32(1.234)), 2)
