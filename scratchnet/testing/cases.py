"""Random calls of a kernel of the device tables, each with what must come out of it."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from .contract import assert_matches_reference
from .kernels import KERNEL_ROWS
from .strategies import EDGES, Content, choice, draw_arrays, draw_lengths, hypothesis_strategies


@dataclass(frozen=True)
class KernelCase:
    """One call of a kernel: `kernel(*inputs, out, **params)`, and what must come out of it."""

    name: str
    inputs: tuple[np.ndarray, ...]
    params: dict[str, Any]
    oracle: Callable[..., Any]
    terms: int
    roundings: int
    magnitude: Callable[..., Any] | None

    def check(self, kernel: Callable, reference: Callable | None = None, **options: Any) -> None:
        """Checks a kernel against the oracle, or against another kernel that is taken for the truth.

        options: of `assert_matches_reference`, which also explains the bound; they replace those of the case. Raises
        ContractError as that does, and ConfigError for what is no option, or a parameter that the case has drawn.
        """
        for name in options:
            if name in self.params:
                checks.refuse("KernelCase.check", f"an option, as the case gives {name}={self.params[name]!r}", name)
        own = {"terms": self.terms, "roundings": self.roundings, "magnitude": self.magnitude}
        assert_matches_reference(
            kernel,
            self.oracle if reference is None else _returning(reference, self.oracle),
            self.inputs,
            **own | options | self.params,
        )

    def __repr__(self) -> str:
        arrays = ", ".join(f"{x.dtype}{list(x.shape)}" for x in self.inputs)
        return f"KernelCase({self.name!r}, [{arrays}], {self.params})"


def kernel_cases(
    name: str,
    *,
    dtypes: Sequence[Any] | None = None,
    sizes: Sequence[int] = EDGES,
    max_elements: int = 2**14,
) -> Any:
    """A Hypothesis strategy for calls of the kernel called `name`, as `KernelCase`.

    dtypes: of the inputs; None: the floats that the kernel takes. Rows with `integers` take np.int64 as well. sizes,
    max_elements: as in `arrays`.
    Raises ConfigError for a name that is not in KERNEL_ROWS.
    """
    checks.instance("kernel_cases", name, str, "the name of a kernel")
    if name not in KERNEL_ROWS:
        checks.refuse("kernel_cases", "the name of a kernel", name)
    st = hypothesis_strategies()
    row = KERNEL_ROWS[name]
    content = Content(
        row.dtypes if dtypes is None else dtypes, row.domain, row.special, sizes=sizes, max_elements=max_elements
    )

    @st.composite
    def cases(draw):
        params = {key: values[draw(choice(*range(len(values))))] for key, values in row.params.items()}
        shapes = row.shapes if isinstance(row.shapes, str) else row.shapes(**params)
        lengths = draw_lengths(draw, f"{shapes} {row.lengths}", content)
        inputs = draw_arrays(draw, shapes, lengths, content)
        asked = {letter: lengths[letter] for letter in row.lengths}
        oracle = functools.partial(row.oracle, **asked) if asked else row.oracle
        summed = row.terms if isinstance(row.terms, str) else row.terms(**params)
        terms = math.prod(int(letter) if letter.isdigit() else lengths[letter] for letter in summed)
        magnitude = row.magnitude or (_of_absolutes(oracle) if row.terms else None)
        return KernelCase(name, inputs, params, oracle, terms, row.roundings, magnitude)

    return cases()


def _of_absolutes(oracle: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *inputs, **params: oracle(*[np.abs(x) for x in inputs], **params)


def _returning(kernel: Callable, oracle: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that fills arrays as a function that returns them; the oracle knows their shapes."""

    def function(*inputs, **params):
        like = oracle(*inputs, **params)
        results = tuple(np.empty_like(y) for y in (like if isinstance(like, tuple) else (like,)))
        kernel(*inputs, *results, **params)
        return results

    return function
