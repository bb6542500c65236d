"""The front door of every compiled kernel: it hands on the arrays for which there is machine code.

It has the parameters of the reference, whose table also stands here.
"""

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from . import reference, reference_cells, reference_half, reference_windows
from .signatures import accepted, arrays_of

# log(0) and 1/0 have IEEE answers; a NumPy warning would be one that no other device gives.
REFERENCE: dict[str, Callable[..., None]] = {
    name: np.errstate(all="ignore")(function)
    for name, function in (
        vars(reference) | vars(reference_windows) | vars(reference_cells) | vars(reference_half)
    ).items()
    if isinstance(function, FunctionType) and name[0] != "_"
}

_ENTRY = """
def {name}({parameters}):
    if {fit} and ({dtypes},) in accepted:
        kernel({arguments})
    else:
        otherwise({arguments})
"""


def entry(
    name: str, device: str, kernel: Callable, fits: str, otherwise: Callable, **scope: Any
) -> Callable[..., None]:
    """A function with the reference's parameters: `kernel` if dtypes are accepted and arrays fit, or else `otherwise`.

    fits: the condition on an array x, as source, such as "{x}.flags.carray"; scope: the names in it.
    The function is written out as source, as dataclasses do it, because loops over arguments cost 0.5-1 us a call.
    """
    parameters = inspect.signature(REFERENCE[name]).parameters
    arrays = list(parameters)[: arrays_of(name)[1]]
    source = _ENTRY.format(
        name=name,
        parameters=", ".join(map(str, parameters.values())),
        fit=" and ".join(fits.format(x=x) for x in arrays),
        dtypes=", ".join(f"{x}.dtype" for x in arrays),
        arguments=", ".join(parameters),
    )
    scope |= {"accepted": accepted(name, device), "kernel": kernel, "otherwise": otherwise}
    exec(source, scope)
    scope[name].__doc__, scope[name].__module__ = REFERENCE[name].__doc__, f"{__package__}.{device}"
    return scope[name]
