"""A kernel against a reference: the values within a bound that is derived, and everything else that a kernel promises.

The bound is the one of numerical analysis, not a tolerance that was tuned until the tests passed.
"""

import difflib
import inspect
import math
import re
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .. import checks
from ..errors import ContractError
from . import calls
from .bounds import WIDER, Bound, differs, same_bits, worst
from .calls import MARGIN
from .strategies import CONTIGUOUS, LAYOUTS, written

_WHO = "assert_matches_reference"


def __tracebackhide__(info: Any) -> bool:
    """For pytest: of a kernel that is wrong it shows the call in the user's test, and not what happens in here."""
    return isinstance(info.value, ContractError)


def assert_matches_reference(
    kernel: Callable[..., Any], reference: Callable[..., Any], inputs: Sequence[Any], **options: Any
) -> None:
    """Checks that a kernel computes what a reference computes, and does nothing else.

    kernel: fills arrays, `kernel(*inputs, *results, **params)`, or returns one (or a tuple of them). Functions of
        Python, Numba (lazy, explicit signatures, parallel, ufuncs), numba.cuda, Cython and ctypes are called alike.
    reference: `reference(*inputs, **params)` returns the result (or a tuple). Its inputs have more digits than the
        kernel's (float64, np.longdouble), if it takes those.
    inputs: arrays, and scalars, which both get as they are.

    Options, of which every other name must be a parameter of the kernel and goes to kernel and reference:

    terms: how many numbers of either sign one element of the result adds up: the length of a reduction, for every order
        of summation; `pairwise(n)` and `blocked(n, block)` for those that promise one.
    roundings: how many more roundings an element sees on its way; 2 make one ulp, a complex product has 3. 0 asks for
        equality.
    magnitude: `magnitude(*inputs, **params)`, the size of what is added up: the kernel's formula with every term
        replaced by its absolute value. If left out, `reference(*|inputs|)` where terms > 1, else
        `|reference(*inputs)|`.
    accumulate: the dtype in which terms are added up, if it is not that of the result.
    rtol, atol: also right is what lies within atol + rtol * |expected|.
    layouts: names in LAYOUTS; the kernel is run on inputs of each. By default CONTIGUOUS, without those that the
        signatures of a Numba or Cython kernel do not take, which a warning names.
    threads: the bits must be the same for each of these numbers of Numba's threads; by default (1, 2, all) for a kernel
        with parallel=True, or one that calls such a kernel by name.
    aliased: also give one array for all floating inputs of its shape and dtype, `kernel(x, x)`, where the reference's
        answer to that is finite.
    inplace: numbers of inputs whose memory may be that of the first, second, ... result: `kernel(x, x)` for `out=x`.
    out: the dtype of the result, or a tuple of them; by default that of the floating inputs.
    fills: does the kernel fill arrays? By default it does if it has a parameter `out` or `new_...`, or asks for as many
        arguments as there are inputs and results.
    launch: (blocks, threads) for a cuda kernel, or a function of the inputs that returns them; by default a thread for
        each element of the result, in one dimension.

    With u the unit roundoff, every element must lie within

        ((1 + u)^(terms - 1 + roundings) - 1) * magnitude + (terms - 1 + roundings) * (smallest number)

    of the reference: Higham, Accuracy and Stability of Numerical Algorithms (2002), sections 3.1 and 4.2. u is doubled
    where the reference has no more digits than the kernel. NaN and infinities must be the same; where the terms pass
    the largest number of the type, so may the result. The kernel must also keep the dtype, write every element of its
    results and none beside them, give the same bits twice, leave its inputs as they were, and return none of their
    memory.

    Raises ContractError: one line with the element, what was expected, what came, and the bound; its note is a call
    that reproduces it. Raises ConfigError for options that neither this function nor the kernel knows.
    """
    checks.function(f"{_WHO}: kernel", kernel)
    checks.function(f"{_WHO}: reference", reference)
    if isinstance(inputs, np.ndarray):
        checks.refuse(f"{_WHO}: inputs", "a list of arrays", inputs, remedy="write [x]")
    given = [_input(x) for x in checks.items(f"{_WHO}: inputs", inputs, "a list of arrays")]
    names = {field.name for field in fields(Options)}
    params = {name: value for name, value in options.items() if name not in names}
    _check_names(kernel, params, names)
    chosen = Options(**{name: value for name, value in options.items() if name in names})
    try:
        _Check(kernel, reference, given, chosen, params).run()
    except ContractError as error:
        error.add_note(f"to reproduce: {_reproduction(kernel, reference, given, options)}")
        raise


def _input(x: Any) -> Any:
    if isinstance(x, int | float | complex | np.generic):
        return x
    return checks.array(f"{_WHO}: an input", x, "biufc")


def _check_names(kernel: Any, params: Mapping[str, Any], options: set[str]) -> None:
    known = calls.parameters(kernel)
    if known is not None and any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for name in params:
        if name not in (known or ()):
            near = difflib.get_close_matches(name, [*options, *(known or ())], 1)
            remedy = f"write {near[0]}" if near else f"options are {', '.join(sorted(options))}"
            checks.refuse(_WHO, f"an option or a parameter of {calls.name_of(kernel)}", name, remedy=remedy)


@dataclass(frozen=True)
class Options:
    """The options of `assert_matches_reference`, checked."""

    terms: int = 1
    roundings: int = 8
    magnitude: Callable[..., Any] | None = None
    accumulate: Any = None
    rtol: float = 0.0
    atol: float = 0.0
    layouts: Sequence[str] | None = None
    threads: Sequence[int] | None = None
    aliased: bool = True
    inplace: Sequence[int] = ()
    out: Any = None
    fills: bool | None = None
    launch: Any = None

    def __post_init__(self) -> None:
        for name in ("terms", "roundings"):
            self._set(name, checks.integer(f"{_WHO}: {name}", getattr(self, name), 0))
        for name in ("rtol", "atol"):
            self._set(name, checks.number(f"{_WHO}: {name}", getattr(self, name), "[0, inf)"))
        if self.magnitude is not None:
            checks.function(f"{_WHO}: magnitude", self.magnitude)
        if self.accumulate is not None:
            self._set("accumulate", checks.dtype(f"{_WHO}: accumulate", self.accumulate))
        if self.layouts is not None:
            for layout in self._items("layouts", "a list of names"):
                checks.one_of(f"{_WHO}: a layout", layout, LAYOUTS)
        if self.threads is not None:
            for n in self._items("threads", "a list of numbers of threads"):
                checks.integer(f"{_WHO}: threads", n, 1)
        checks.flag(f"{_WHO}: aliased", self.aliased)
        if isinstance(self.inplace, int):
            self._set("inplace", (self.inplace,))
        for n in self._items("inplace", "numbers of inputs"):
            checks.integer(f"{_WHO}: inplace", n, 0)
        if self.out is not None:
            dtypes = self.out if isinstance(self.out, tuple) else (self.out,)
            self._set("out", tuple(checks.dtype(f"{_WHO}: out", dtype) for dtype in dtypes))
        if self.fills is not None:
            checks.flag(f"{_WHO}: fills", self.fills)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _items(self, name: str, expected: str) -> list[Any]:
        self._set(name, tuple(checks.items(f"{_WHO}: {name}", getattr(self, name), expected)))
        return list(getattr(self, name))

    @property
    def bound(self) -> Bound:
        return Bound(self.terms, self.roundings, self.accumulate, self.rtol, self.atol)


_FACE = inspect.signature(assert_matches_reference)
_KEYWORDS = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in fields(Options)]
assert_matches_reference.__signature__ = _FACE.replace(  # type: ignore[attr-defined]  # what help() and editors show
    parameters=[*list(_FACE.parameters.values())[:3], *_KEYWORDS, inspect.Parameter("params", _KEYWORDS[0].VAR_KEYWORD)]
)


class _LayoutRefusedError(Exception):
    """A compiled kernel has signatures, and none for this layout."""


_called: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()


def _timed(function: Any, key: Any, call: Callable[[], Any]) -> Any:
    """call(); the first one of a function for arguments of these types may compile it, see `untimed`."""
    try:
        known = _called.setdefault(function, set())
    except TypeError:  # neither hashable nor weakly referenced
        return calls.untimed(call)
    if key in known:
        return call()
    known.add(key)
    return calls.untimed(call)


@dataclass
class _Check:
    """One call of `assert_matches_reference`."""

    kernel: Any
    reference: Callable[..., Any]
    inputs: list[Any]
    options: Options
    params: Mapping[str, Any]

    def run(self) -> None:
        threads = calls.numbers_of_threads(self.kernel, self.options.threads)
        passed = []
        refusals: dict[str, str] = {}
        for layout in CONTIGUOUS if self.options.layouts is None else self.options.layouts:
            try:
                self._promises(self._in(layout), f"layout {layout!r}")
                passed.append(layout)
            except _LayoutRefusedError as error:
                refusals[layout] = str(error)
        if refusals and (self.options.layouts or not passed):
            layout, message = next(iter(refusals.items()))
            raise ContractError(f"{self.name}, layout {layout!r}: {message}; leave it out of layouts=")
        if refusals:
            warnings.warn(
                f"{self.name}: layout {', '.join(map(repr, refusals))} left out, as no signature of it takes that;"
                f" layouts={tuple(passed)} says so",
                stacklevel=4,
            )
        for layout in passed[:1]:
            self._aliased(self._in(layout), f"layout {layout!r}")
            if self.options.inplace:
                self._in_place(self._in("C" if layout == "readonly" else layout), f"layout {layout!r}, in place")
            if threads:
                self._same_on_threads(self._in(layout), threads, f"layout {layout!r}")

    @property
    def name(self) -> str:
        return calls.name_of(self.kernel)

    def _in(self, layout: str) -> list[Any]:
        return [LAYOUTS[layout](x) if isinstance(x, np.ndarray) else x for x in self.inputs]

    def _where(self, given: Sequence[Any], where: str) -> str:
        kinds = [f"{x.dtype}{x.shape}" if isinstance(x, np.ndarray) else repr(x) for x in given]
        return f"{self.name}, {where}, {'inputs ' + ', '.join(kinds) if kinds else 'no inputs'}"

    # --- what must hold ---------------------------------------------------------------------------------------------

    def _promises(self, given: list[Any], where: str) -> None:
        """Two runs into memory with other rubbish in it give the same bits, within the bound."""
        expected = self._evaluate(self.reference, given, where)
        first, second = (self._results(given, expected, rubbish, where) for rubbish in (False, True))
        for x, y in zip(first, second, strict=True):
            if not same_bits(x, y):
                at, a, b = differs(x, y)
                same = f"element {at}: expected to be written, and the same twice, got {a} and then {b}"
                raise ContractError(f"{self._where(given, where)}: {same}")
        self._values(given, first, expected, where)

    def _values(self, given: list[Any], results: list[np.ndarray], expected: list[np.ndarray], where: str) -> None:
        if self.options.magnitude is not None:
            sizes = self._evaluate(self.options.magnitude, given, where)
        elif self.options.terms > 1:
            absolute = [np.abs(x) if isinstance(x, np.ndarray) else x for x in given]
            sizes = self._evaluate(self.reference, absolute, where)
        else:
            sizes = expected
        for i, (got, wanted, size) in enumerate(zip(results, expected, sizes, strict=True)):
            wrong = worst(got, wanted, np.abs(size), self.options.bound)
            if wrong:
                output = "" if len(results) == 1 else f", output {i}"
                raise ContractError(f"{self._where(given, where)}{output}: {wrong}")

    def _aliased(self, given: list[Any], where: str) -> None:
        """The same with one array for all inputs that are alike, where the reference has an answer to that."""
        first: dict[Any, Any] = {}
        merged = [
            first.setdefault((x.dtype, x.shape), x) if isinstance(x, np.ndarray) and x.dtype.kind in "fc" else x
            for x in given
        ]
        if not self.options.aliased or all(x is y for x, y in zip(given, merged, strict=True)):
            return
        try:
            expected = self._evaluate(self.reference, merged, where)
        except ContractError:
            return
        if all(np.isfinite(y).all() for y in expected):
            numbers = [str(i) for i, x in enumerate(merged) if sum(x is y for y in merged) > 1]
            self._promises(merged, f"{where}, one array for inputs {' and '.join(numbers)}")

    def _in_place(self, given: list[Any], where: str) -> None:
        expected = self._evaluate(self.reference, given, where)
        for i, y in zip(self.options.inplace, expected, strict=False):
            x = given[i] if i < len(given) else None
            if not isinstance(x, np.ndarray) or x.shape != y.shape or not self._fills(given, expected):
                checks.refuse(f"{_WHO}: inplace", f"inputs of {y.shape} that {self.name} may fill", i)
        self._values(self._in("C"), self._results(given, expected, False, where, self.options.inplace), expected, where)

    def _same_on_threads(self, given: list[Any], threads: Sequence[int], where: str) -> None:
        expected = self._evaluate(self.reference, given, where)
        first: list[np.ndarray] = []
        for n in threads:
            with calls.numba_threads(n):
                results = self._results(given, expected, False, f"{where}, threads {n}")
            first = first or results
            for x, y in zip(first, results, strict=True):
                if not same_bits(x, y):
                    at, a, b = differs(x, y)
                    raise ContractError(
                        f"{self._where(given, where)}: element {at}: expected the same bits for each number of threads,"
                        f" got {a} with {threads[0]} and {b} with {n}"
                    )

    # --- calls ------------------------------------------------------------------------------------------------------

    def _evaluate(self, function: Callable[..., Any], inputs: Sequence[Any], where: str) -> list[np.ndarray]:
        """The results of a reference, in a type with more digits if it can."""

        def result(kinds: Mapping[np.dtype, np.dtype]) -> Any:
            wide = [x.astype(kinds.get(x.dtype, x.dtype)) if hasattr(x, "dtype") else x for x in inputs]
            with np.errstate(all="ignore"):
                return function(*wide, **self.params)

        try:
            try:
                value = _timed(function, _types(inputs), lambda: result(WIDER))
            except (
                TypeError,
                ValueError,
                NotImplementedError,
            ):  # no long double: SciPy, PyTorch and compiled functions
                value = result({kind: min(wider, _NOT_LONG[wider.kind]) for kind, wider in WIDER.items()})
            return [np.asarray(y) for y in (value if isinstance(value, tuple) else (value,))]
        except Exception as error:
            raise ContractError(f"{self._where(inputs, where)}: the reference raised {_in_short(error)}") from error

    def _fills(self, given: list[Any], expected: list[np.ndarray]) -> bool:
        known = self.options.fills
        return calls.fills(self.kernel, len(given), len(expected), self.params) if known is None else known

    def _dtypes(self, given: list[Any], expected: list[np.ndarray]) -> list[np.dtype]:
        """What the results must be: floats as the floating inputs, the others as the reference says."""
        if self.options.out is not None:
            if len(self.options.out) != len(expected):
                checks.refuse(f"{_WHO}: out", f"{len(expected)} dtypes, one a result", self.options.out)
            return list(self.options.out)
        floats = [x.dtype for x in given if hasattr(x, "dtype") and x.dtype.kind in "fc"]
        common = np.result_type(*floats) if floats else np.dtype(np.float64)
        kinds = {"f": np.empty(0, common).real.dtype, "c": np.result_type(common, np.complex64)}
        return [kinds.get(y.dtype.kind, y.dtype) for y in expected]

    def _results(
        self, given: list[Any], expected: list[np.ndarray], rubbish: bool, where: str, inplace: Sequence[int] = ()
    ) -> list[np.ndarray]:
        """The kernel's results after one run, and all checks but that of values."""
        dtypes, shapes = self._dtypes(given, expected), [y.shape for y in expected]
        buffers: list[Any] = []
        if self._fills(given, expected):
            buffers = [_rubbish(shape, dtype, rubbish) for shape, dtype in zip(shapes, dtypes, strict=True)]
            buffers[: len(inplace)] = [given[i] for i in inplace]
        where = self._where(given, where)
        apart = [b.memory for b in buffers if isinstance(b, calls.Apart)]
        margins = [_margins(memory) for memory in apart]
        before = [x.tobytes() if isinstance(x, np.ndarray) else b"" for x in given]
        values = self._called(given, buffers, shapes, where)
        if [_margins(memory) for memory in apart] != margins:
            raise ContractError(f"{where}: expected nothing written beside the result, got a change there")
        for i, (x, content) in enumerate(zip(given, before, strict=True)):
            if i not in inplace and isinstance(x, np.ndarray) and x.tobytes() != content:
                raise ContractError(f"{where}: expected the inputs as they were, but input {i} was changed")
        if buffers:
            return [calls.result_in(b, shape) for b, shape in zip(buffers, shapes, strict=True)]
        if len(values) != len(expected):
            raise ContractError(f"{where}: expected {len(expected)} results, got {len(values)}")
        results = [np.asarray(y, kind if type(y) in _PLAIN else None) for y, kind in zip(values, dtypes, strict=True)]
        for got, dtype, shape in zip(results, dtypes, shapes, strict=True):
            if got.dtype != dtype or got.shape != shape:
                raise ContractError(f"{where}: expected {dtype} of shape {shape}, got {got.dtype} of {got.shape}")
            if any(np.may_share_memory(x, got) for x in given if isinstance(x, np.ndarray)):
                raise ContractError(f"{where}: expected a result with memory of its own, got an input's")
        return results

    def _called(self, given: list[Any], buffers: list[Any], shapes: list[tuple], where: str) -> tuple[Any, ...]:
        def call() -> tuple[Any, ...]:
            value = calls.call(self.kernel, given, buffers, shapes, self.options.launch, self.params)
            values = () if buffers else value if isinstance(value, tuple) else (value,)
            return tuple(y if type(y) in _PLAIN else np.asarray(y) for y in values)

        try:
            return _timed(self.kernel, (_types(given), where.partition(", inputs")[0]), call)
        except Exception as error:
            if type(error).__module__.partition(".")[0] == "hypothesis":
                raise
            if calls.refuses_layout(error):
                raise _LayoutRefusedError(_in_short(error)) from None
            if isinstance(error, ContractError):
                raise ContractError(f"{where}: {error}") from None
            expected = "no exception"
            if re.search("read-?only", str(error)):
                expected = "the inputs as they were, so that they may be read-only"
            guessed = self.options.fills is None and not buffers and calls.parameters(self.kernel) is None
            remedy = "; fills=True calls it with arrays to fill" if guessed and isinstance(error, TypeError) else ""
            raise ContractError(f"{where}: expected {expected}, got {_in_short(error)}{remedy}") from error


_PLAIN = (bool, int, float, complex)  # they have no dtype: what compiled functions return for numbers of their own
_NOT_LONG = {"f": np.dtype(np.float64), "c": np.dtype(np.complex128)}


def _types(inputs: Sequence[Any]) -> tuple[Any, ...]:
    return tuple((x.dtype, x.ndim) if isinstance(x, np.ndarray) else type(x) for x in inputs)


def _in_short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) < 300 else text[:300] + '...'}"


def _margins(memory: np.ndarray) -> bytes:
    return memory[:MARGIN].tobytes() + memory[-MARGIN:].tobytes()


def _rubbish(shape: Sequence[int], dtype: np.dtype, ones: bool) -> calls.Apart:
    """Memory full of ones, or of NaN (zeros if it has none), for a result in its middle."""
    value = np.nan if dtype.kind in "fc" and not ones else ones
    return calls.Apart(np.full(math.prod(shape) + 2 * MARGIN, value, dtype))


def _reproduction(kernel: Any, reference: Any, inputs: Sequence[Any], options: Mapping[str, Any]) -> str:
    """A call to paste that does without Hypothesis."""

    def name(function: Any) -> str:
        called = calls.name_of(function)
        return called if called.isidentifier() else "reference"

    values = {key: getattr(value, "__name__", None) or written(value) for key, value in options.items()}
    arguments = [name(kernel), name(reference), f"[{', '.join(map(written, inputs))}]"]
    return f"{_WHO}({', '.join([*arguments, *(f'{key}={value}' for key, value in values.items())])})"
