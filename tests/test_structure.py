"""The shape of the package: imports point one way, and the tables have no holes."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import scratchnet

PACKAGE = Path(scratchnet.__file__).parent

# Each part may import parts of a lower rank, and itself.
RANKS = {
    "errors": 0,
    "native": 0.5,
    "kernels": 1,
    "tracing": 2,
    "random": 3,
    "ops": 3,
    "tensor": 4,
    "autograd": 5,
    "functions": 5,
    "formats": 5,
    "data": 6,
    "metrics": 5,
    "nn": 6,
    "optim": 6,
    "jit": 7,
    "flags": 6,
    "cuda": 5,
    "parallel": 8,
    "trainer": 9,
    "report": 10,
    "testing": 10,
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path):
    """The parts of scratchnet that a file imports, at the top or inside a function."""
    package = ["scratchnet", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [[*base, *(node.module or "").split("."), alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for name in names:
            name = [part for part in name if part]
            if name[0] == "scratchnet" and len(name) > 1:
                yield name[1]


def test_imports_point_one_way():
    for path in PACKAGE.rglob("*.py"):
        part = part_of(path)
        if part == "__init__":
            continue
        for other in imported_parts(path):
            assert other == part or RANKS[other] < RANKS[part], f"{path.relative_to(PACKAGE)} imports {other}"


def test_every_part_of_the_package_has_a_rank():
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert parts == set(RANKS)


def test_tables_hold_the_same_kernels_with_the_same_signatures():
    from scratchnet.kernels import TABLES

    tables = {name: make() for name, make in TABLES.items()}
    reference = tables["numpy"]
    for name, table in tables.items():
        assert set(table) == set(reference), name
        for key, kernel in table.items():
            assert list(inspect.signature(kernel).parameters) == list(inspect.signature(reference[key]).parameters), key


def test_public_names_are_all_there():
    names = """Tensor tensor no_grad grad value_and_grad manual_seed set_num_threads get_num_threads default_device save
        load Trainer nn optim data metrics cat stack where exp log sqrt abs tanh sigmoid relu gelu clip maximum minimum
        sum mean max min var argmax reshape transpose permute squeeze unsqueeze broadcast_to pad matmul softmax
        log_softmax logsumexp ScratchnetError"""
    assert not [name for name in names.split() if not hasattr(scratchnet, name)]
    assert set(names.split()) <= set(scratchnet.__all__)


def test_importing_does_not_load_what_only_scripts_and_tests_need():
    lazy = ("hypothesis", "matplotlib", "numba", "numba_cuda", "scipy", "tqdm")
    code = f"import sys, scratchnet; print([name for name in {lazy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
