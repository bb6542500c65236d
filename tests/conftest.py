"""How all tests run: on which devices, in which of two processes, and with how many random examples.

HYPOTHESIS_PROFILE=thorough draws many more examples, new ones each time. With NUMBA_DISABLE_JIT=1 there are few.
"""

import os
import sys
from pathlib import Path
from unittest import mock

os.environ.setdefault("SCRATCHNET_COMPILERS", "1")  # the two processes share the compiling, see native/cache.py

import limits
import pytest
from hypothesis import HealthCheck, settings
from sizes import DEVICES, JIT, SIMULATED

import scratchnet as sn

# Unbuffered, Python writes a line and its end apart, so that lines of processes that share a pipe come out mixed.
os.environ.pop("PYTHONUNBUFFERED", None)
# Tests start hundreds of processes, of which each would compile all sources of the package anew: 0.1 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

COMMON = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("default", max_examples=10 if JIT else 4, **COMMON)
settings.register_profile("thorough", max_examples=300, **{**COMMON, "derandomize": False})
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Tests that come out the same whatever the threading layer, with the JIT and without: files, data sets, reports, and
# processes, which have kernels of their own. They are marked `once`, as are those on the reference device, see below;
# .ci/run repeats the others without the JIT and in simulators, `-m "not once"`, and those that are marked `threads`, as
# they start parallel loops, on each threading layer.
ONCE = {
    "data": (
        "test_augment", "test_collate", "test_images", "test_loader", "test_samplers", "test_series",
        "test_sources",
        "test_tables", "test_text",
    ),
    "large": ("test_folder", "test_scattered", "test_spark", "test_stored"),
    "files": ("test_cells", "test_classes", "test_content", "test_idx", "test_series"),
    "cuda": ("test_compiled", "test_linked_gpus", "test_several_gpus", "test_stub", "test_without_gpu"),
    "cpu": ("test_pairs", "test_tiles"),
    "opencl": ("test_driver", "test_source"),
    "native": ("test_ahead", "test_aligned", "test_cache", "test_compile", "test_limits", "test_llvm"),
    "model": ("test_backward", "test_parts", "test_pieces", "test_timetable"),
    "comm": ("test_collectives", "test_job", "test_memory", "test_server", "test_tree", "test_virtual"),
    "pool": ("test_launch", "test_pool"),
    "mpi": (
        "test_communicator", "test_faults", "test_hosts", "test_machines", "test_mpi_train", "test_run", "test_slurm",
        "test_stages", "test_training",
    ),
    "clusters": (
        "test_dask", "test_hydra", "test_kubernetes", "test_launcher", "test_pod", "test_ray", "test_rendezvous",
        "test_spark",
    ),
    "parallel": (
        "test_compression", "test_modules", "test_objects", "test_planner", "test_shards", "test_strategies",
    ),
    "formats": ("test_atomic", "test_checkpoint", "test_checkpoint_folder", "test_pytorch"),
    "caffe": ("test_net",),
    "onnx": ("test_operators", "test_read", "test_write"),
    "optim": ("test_lr_scheduler",),
    "trainer": ("test_checks", "test_evaluation", "test_metrics_log", "test_moments", "test_precision", "test_trainer"),
    "callbacks": ("test_database", "test_finder", "test_monitors", "test_tensorboard"),
    "sequences": ("test_workers",),
    "testing": ("test_bounds", "test_calls", "test_planted", "test_threads"),
    "sklearn": ("test_estimators",),
    "scripts": (
        "test_book_pictures", "test_cluster_elastic", "test_doctor", "test_drill", "test_estimators", "test_exercises",
        "test_flags",
        "test_from_cpu_to_gpu", "test_jobs", "test_runs", "test_scripts", "test_train_images", "test_tune",
    ),
    "tests": (
        "test_distribution", "test_docs", "test_main", "test_metrics", "test_networks", "test_notebooks",
        "test_predictor", "test_readme", "test_reference", "test_report", "test_structure", "test_time_limit",
    ),
}  # fmt: skip


def computes_with_numpy_alone(item):
    """Does a test run on the reference device, which has no compiled kernels and no threads? (Of 1,517 that do, three
    also add a few numbers on the cpu.)"""
    call = getattr(item, "callspec", None)
    return "numpy_device" in item.fixturenames or (call is not None and call.params.get("device") == "numpy")


# pytest-xdist runs a file's tests in one of two processes, which take the files in this order. Files that start
# processes wait much of the time, the others compute: they take turns, so that mostly one of the two computes.
# Of each kind, what takes longest comes first, so that both end at about the same time.
TESTS = Path(__file__).parent
START_PROCESSES = (
    "trainer", "parallel/pool", "scripts", "test_docs.py", "parallel", "test_time_limit.py",
    "kernels/cuda/test_workers.py", "kernels/cuda/test_linked_gpus.py", "kernels/cuda/test_several_gpus.py",
    "kernels/cuda/test_stub.py",
    "nn/sequences/test_workers.py",
)  # fmt: skip
LONG = (
    "kernels/cuda/test_compiled.py",
    "kernels/test_contract.py",
    "kernels/cpu/test_gemm.py",
    "native/test_ahead.py",
    "native/test_cache.py",
    "ops",
)


def place_of(path, first):
    """Where a file comes among those of its kind, by what their names begin with."""
    name = path.relative_to(TESTS).as_posix()
    return next((place for place, start in enumerate(first) if name.startswith(start)), len(first))


def in_turns(paths):
    """{file: when it comes}: of each of the two kinds the same part at any time."""
    kinds = ([], [])
    for path in dict.fromkeys(paths):
        kinds[place_of(path, START_PROCESSES) == len(START_PROCESSES)].append(path)
    found = {}
    for kind, first in zip(kinds, (START_PROCESSES, LONG), strict=True):
        kind.sort(key=lambda path, first=first: place_of(path, first))
        found |= {path: i / len(kind) for i, path in enumerate(kind)}
    return found


def pytest_collection_modifyitems(items):
    when = in_turns(item.path for item in items)
    items.sort(key=lambda item: when[item.path])
    for item in items:
        if item.path.stem in ONCE.get(item.path.parent.name, ()) or computes_with_numpy_alone(item):
            item.add_marker("once")


def pytest_configure(config):
    config.watch = limits.Watch(os.fdopen(os.dup(2), "w"))  # standard error, which is captured later


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.config.watch.begin(item.nodeid)
    try:
        return (yield)
    finally:
        item.config.watch.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if item.nodeid in item.config.watch.exceeded:
        item.config.watch.exceeded.remove(item.nodeid)
        report.outcome, report.longrepr = "failed", "no end within the time limit; the stacks are on standard error"
    return report


@pytest.fixture(autouse=True)
def _parallel_loops_only_where_they_are_expected(request):
    """A test that has neither mark and starts one fails: .ci/run would not repeat it on other threading layers."""
    if not JIT or any(map(request.node.get_closest_marker, ("once", "threads"))):
        yield
        return
    from scratchnet.native import execute, loops

    def start(*args):
        pytest.fail("expected no parallel loop in a test that is not marked `threads`, see tests/conftest.py")

    with mock.patch.object(loops, "over_blocks", start), mock.patch.object(execute, "over_blocks", start):
        yield


def threads_of_kernels():
    """How many threads the kernels of this process use; None if none has run."""
    layer = sys.modules.get("numba.np.ufunc.parallel")
    return layer._get_num_threads() if layer is not None and layer._is_initialized else None


@pytest.fixture(autouse=True)
def _as_many_threads_as_before():
    """A test that leaves another number fails, not those that come later in the same process."""
    before = threads_of_kernels()
    yield
    if before is not None and (after := threads_of_kernels()) != before:
        sn.set_num_threads(before)
        pytest.fail(f"expected {before} threads of kernels after the test, as before it, got {after}")


@pytest.fixture(autouse=True, scope="session")
def _interpreted():
    """In the simulator: kernels of the cuda table on tiny blocks and tiles, thread by thread, with every check."""
    if not SIMULATED:
        yield
        return
    from scratchnet.kernels.cuda import tuning
    from scratchnet.testing import interpreted

    with tuning.use(tuning.TINY), interpreted():
        yield


@pytest.fixture(params=DEVICES)
def device(request):
    """The name of each device in turn, on which new tensors are made."""
    with sn.default_device(request.param):
        yield request.param


@pytest.fixture
def numpy_device(request):
    """The reference device, for tests of what happens above the kernels; where a whole file has it, but a test of it
    asks for each device in turn, that one has its way.
    """
    if "device" in request.fixturenames:
        yield request.getfixturevalue("device")
        return
    with sn.default_device("numpy"):
        yield "numpy"
