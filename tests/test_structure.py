"""The shape of the package: imports point one way, files and signatures stay short, tables have no holes."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import structure

import scratchnet
from tests import conftest

PACKAGE = Path(scratchnet.__file__).parent
PROJECT = PACKAGE.parent
MUTANTS = PROJECT / "tests" / "mutants"

# From the lowest to the highest: a file imports what stands below it, and, within its own file or folder, whatever
# makes no cycle. The package's own __init__.py gathers the public names and stands above all.
LAYERS = (
    "errors version",
    "checks words",
    "drawing",
    "native sealed",
    "kernels",
    "tracing",
    "stateful grad_mode precisions dtypes row_gradient",
    "random ops",
    "hooks half",
    "autograd",
    "in_place conversions numpy_protocol",
    "tensor",
    "functions constructors custom nonfinite formats cuda metrics",
    "data nn optim flags",
    "networks",
    "predictor utils formats/onnx formats/pytorch formats/caffe",
    "onnx pytorch caffe",
    "jit",
    "draw",
    "parallel/comm",
    "parallel/modules",
    "parallel/objects",
    "parallel/failpoints parallel/phases parallel/placement",
    "parallel/compression",
    "parallel/strategies",
    "parallel/settings",
    "parallel/shards",
    "parallel/model",
    "parallel/pool",
    "parallel/mpi",
    "parallel/groups",
    "parallel/clusters",
    "parallel",
    "trainer",
    "report testing",
    "callbacks",
    "sklearn",
    "jobs",
    "__main__",
)

# What must not leak although it lies below: (who, what it must not know).
BANNED = (
    ("data", "kernels/cuda"),
    ("data", "cuda"),
    ("ops", "kernels/cuda"),
    ("ops", "cuda"),
    ("nn", "jit"),
    ("nn", "tracing"),
    ("optim", "jit"),
    ("optim", "tracing"),
    ("parallel", "kernels/cpu"),
)

# Where an import is computed, and why no arrow hides in it.
COMPUTED = (
    "parallel/modules.py",  # a worker imports the user's modules as they were when the run began
    "parallel/comm/job.py",  # waits for the modules that start workers, which somebody else imports
)

LINES, FILES, PARAMETERS = 450, 13, 10
WIDE = ".", "kernels/cpu", "kernels/cuda"  # folders that may have any number of files

# The core that reads in an afternoon, in the order of reading.
AFTERNOON = (
    "scratchnet/kernels/reference.py",
    "scratchnet/ops/table.py",
    "scratchnet/ops/elementwise.py",
    "scratchnet/autograd.py",
    "scratchnet/parallel/pool/claims.py",
    "scratchnet/parallel/pool/worker.py",
    "scripts/train.py",
)
AFTERNOON_LINES = 1200


def test_no_files_import_each_other():
    assert structure.cycles(PACKAGE) == []


def test_imports_point_one_way():
    assert structure.upward(PACKAGE, LAYERS) == []


def test_nobody_knows_what_is_not_their_business():
    assert structure.banned(PACKAGE, BANNED) == []


def test_no_import_hides():
    assert structure.computed_imports(PACKAGE, COMPUTED) == []


def test_nobody_asks_which_strategy_it_is():
    assert structure.asks_which(PACKAGE, ["Strategy", "Compression"]) == []


@pytest.mark.parametrize("folder", [PACKAGE, PROJECT / "scripts"], ids=lambda folder: folder.name)
def test_files_and_signatures_are_short(folder):
    assert structure.long_files(folder, LINES) == []
    assert structure.long_signatures(folder, PARAMETERS) == []


def test_folders_are_small():
    assert structure.full_folders(PACKAGE, FILES, WIDE) == []


def test_the_core_reads_in_an_afternoon():
    assert sum(structure.code_lines(PROJECT / file) for file in AFTERNOON) <= AFTERNOON_LINES


# --- the checks find what they are for --------------------------------------------------------------------------------


@pytest.fixture
def plant(tmp_path):
    """Writes a package of these files, {path: source}; returns its folder."""

    def write(sources):
        for name, source in {"__init__.py": "", **sources}.items():
            path = tmp_path / "package" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path / "package"

    return write


@pytest.mark.parametrize(
    "statement",
    [
        "import package.b.c",
        "import package.b.c as c",
        "from package.b import c",
        "from package.b.c import name",
        "from .b import c",
        "from .b.c import name",
        "def f():\n    from .b import c",
        "if TYPE_CHECKING:\n    from .b.c import name",
    ],
)
def test_every_form_of_import_is_an_arrow(plant, statement):
    package = plant({"a.py": statement, "b/__init__.py": "", "b/c.py": "name = 1"})
    assert list(structure.imports(package)["a.py"]) == ["b/c.py"]


def test_imports_from_above_and_of_the_folder_itself_are_arrows(plant):
    package = plant({"a.py": "", "b/__init__.py": "from . import c", "b/c.py": "from ..a import x\nfrom . import y"})
    graph = structure.imports(package)
    assert list(graph["b/__init__.py"]) == ["b/c.py"]
    assert list(graph["b/c.py"]) == ["a.py", "b/__init__.py"]


def test_a_cycle_is_found_also_through_a_third_file_and_inside_a_function(plant):
    package = plant({"a.py": "from . import b", "b.py": "from . import c", "c.py": "def f():\n    from . import a"})
    assert structure.cycles(package) == [["a.py", "b.py", "c.py"]]
    assert structure.cycles(plant({"c.py": ""})) == []


def test_an_arrow_upwards_is_found(plant):
    package = plant({"low.py": "import package.high.x", "high/__init__.py": "", "high/x.py": "from ..low import y"})
    assert structure.upward(package, ["low", "high"]) == ["low.py:1 imports high/x.py"]


def test_an_arrow_to_the_side_is_found(plant):
    package = plant({"a.py": "\nfrom .b import x", "b.py": ""})
    assert structure.upward(package, ["a b"]) == ["a.py:2 imports b.py"]


def test_a_folder_in_a_folder_has_a_layer_of_its_own(plant):
    package = plant({"p/low.py": "from .pool import x", "p/pool/x.py": "", "p/top.py": "from .pool import x"})
    assert structure.upward(package, ["p/low", "p/pool", "p"]) == ["p/low.py:1 imports p/pool/x.py"]


def test_a_file_without_a_layer_is_found(plant):
    assert structure.upward(plant({"a.py": "", "new.py": ""}), ["a"]) == ["new.py is in no layer"]


def test_a_banned_arrow_is_found(plant):
    package = plant({"data/x.py": "def f():\n    from ..kernels.cuda import y", "kernels/cuda/y.py": ""})
    assert structure.banned(package, [("data", "kernels/cuda")]) == ["data/x.py:2 imports kernels/cuda/y.py"]


@pytest.mark.parametrize("source", ["from importlib import import_module", "import importlib\nimportlib.reload(x)"])
def test_a_computed_import_is_found(plant, source):
    assert structure.computed_imports(plant({"a.py": source})) == ["a.py:1 computes an import"]
    assert structure.computed_imports(plant({"a.py": source}), ["a.py"]) == []


def test_dunder_import_is_found(plant):
    assert structure.computed_imports(plant({"a.py": "x = 1\n__import__('y')"})) == ["a.py:2 computes an import"]


@pytest.mark.parametrize("kinds", ["Ours", "(int, Ours)", "int | strategies.Ours"])
def test_a_question_for_a_subclass_is_found(plant, kinds):
    package = plant({"strategies.py": "class Ours(Strategy): pass", "a.py": f"isinstance(x, {kinds})"})
    assert structure.asks_which(package, ["Strategy"]) == ["a.py:1 asks for a Ours"]
    assert structure.asks_which(plant({"a.py": "isinstance(x, Strategy)"}), ["Strategy"]) == []


def test_a_long_file_is_found(plant):
    package = plant({"a.py": "\n" * 4, "b.py": "\n" * 3})
    assert structure.long_files(package, 3) == ["a.py has 4 lines"]


def test_a_full_folder_is_found(plant):
    package = plant({"a/x.py": "", "a/y.py": "", "b/x.py": ""})
    assert structure.full_folders(package, 1) == ["a has 2 files"]
    assert structure.full_folders(package, 1, exempt=["a"]) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def f(a, b, c): pass", "f"),
        ("def f(a, *, b, c): pass", "f"),
        ("def f(a, b, c, /): pass", "f"),
        ("async def f(a, b, c): pass", "f"),
        ("f = lambda a, b, c: 0", "lambda"),
        ("class Public:\n    def f(self, a, b, c): pass", "f"),
        ("class _Private:\n    def __init__(self, a, b, c): pass", "__init__"),
        ("def f():\n    class C:\n        def g(self, a, b, c): pass", "g"),
    ],
)
def test_a_long_signature_is_found(plant, source, name):
    (found,) = structure.long_signatures(plant({"a.py": source}), 2)
    assert found.endswith(f" {name} has 3 parameters")


@pytest.mark.parametrize(
    "source",
    [
        "def f(a, b): pass",
        "def f(a, b, *more, **options): pass",
        "class Public:\n    def f(self, a, b): pass",
        "class Public:\n    def __init__(self, a, b, c): pass",
    ],
)
def test_a_short_signature_and_a_public_constructor_are_none(plant, source):
    assert structure.long_signatures(plant({"a.py": source}), 2) == []


def test_lines_of_code_are_neither_blank_nor_comments_nor_docstrings(plant):
    source = '"""A\n\nfile."""\n\nimport x  # y\n\ndef f():\n    """Short."""\n    # why\n    return """a\n    b"""\n'
    assert structure.code_lines(plant({"a.py": source}) / "a.py") == 4


# --- tables and names -------------------------------------------------------------------------------------------------


def test_tables_of_files_name_files_of_tests():
    files = [path.relative_to(PROJECT / "tests") for path in (PROJECT / "tests").rglob("*.py")]
    wanted = {f"{folder}/{name}.py" for folder, names in conftest.ONCE.items() for name in names}
    assert wanted <= {f"{path.parent.name or 'tests'}/{path.name}" for path in files}
    for name in conftest.START_PROCESSES + conftest.LONG:
        assert any(path.as_posix().startswith(name) for path in files), name


def test_tables_hold_the_same_kernels_with_the_same_signatures():
    from scratchnet.kernels import TABLES

    tables = {name: make() for name, make in TABLES.items()}
    reference = tables["numpy"]
    for name, table in tables.items():
        assert set(table) == set(reference), name
        for key, kernel in table.items():
            assert list(inspect.signature(kernel).parameters) == list(inspect.signature(reference[key]).parameters), key


@pytest.mark.parametrize("folder", ["kernels", "ops", "nn", "optim"])
def test_tests_of_kernels_take_from_testing_what_is_public(folder):
    from scratchnet import testing

    found = structure.taken_from("scratchnet.testing", PROJECT / "tests" / folder)
    assert [where for where, name in found if name not in testing.__all__] == []
    assert found or folder == "optim"


def test_what_is_taken_from_inside_is_found(tmp_path):
    (tmp_path / "a.py").write_text(
        "from scratchnet.testing import arrays\nfrom scratchnet.testing.oracles import philox\n"
        "import scratchnet.testing.calls\nfrom scratchnet import testing\ntesting.calls.name_of\n"
    )
    assert structure.taken_from("scratchnet.testing", tmp_path) == [
        ("a.py:1", "arrays"), ("a.py:2", "oracles"), ("a.py:3", "calls"), ("a.py:5", "calls"),
    ]  # fmt: skip


def test_the_text_of_each_planted_fault_stands_in_its_file_once():
    faults = [fault for table in MUTANTS.glob("*.toml") for fault in tomllib.loads(table.read_text())["mutant"]]
    assert len(faults) > 250
    moved = [fault for fault in faults if (PROJECT / fault["file"]).read_text().count(fault["old"]) != 1]
    assert not moved, "see tests/programs/mutants.py"


def test_public_names_are_all_there():
    names = """Tensor tensor no_grad grad value_and_grad manual_seed set_num_threads get_num_threads default_device save
        load Trainer nn optim data metrics cat stack where exp log sqrt abs tanh sigmoid relu gelu clip maximum minimum
        sum mean max min var argmax reshape transpose permute squeeze unsqueeze broadcast_to pad matmul softmax
        log_softmax logsumexp ScratchnetError"""
    assert not [name for name in names.split() if not hasattr(scratchnet, name)]
    assert set(names.split()) <= set(scratchnet.__all__)


def test_importing_does_not_load_what_only_scripts_and_tests_need():
    lazy = (
        "cloudpickle",
        "dill",
        "http",
        "hypothesis",
        "joblib",
        "matplotlib",
        "mpi4py",
        "multiprocess",
        "numba",
        "numba_cuda",
        "scipy",
        "sklearn",
        "sqlalchemy",
        "tensorboardX",
        "tqdm",
    )
    code = f"import sys, scratchnet; print([name for name in {lazy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
