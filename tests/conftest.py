"""How all tests run: on which devices, in which of two processes, and with how many random examples.

HYPOTHESIS_PROFILE=thorough draws many more examples, new ones each time. With NUMBA_DISABLE_JIT=1 there are few.
"""

import os
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
# .ci/run repeats the others without the JIT and in simulators, `-m "not once"`.
ONCE = {
    "data": (
        "test_augment", "test_collate", "test_images", "test_loader", "test_samplers", "test_series",
        "test_sources",
        "test_tables", "test_text",
    ),
    "large": ("test_folder", "test_scattered", "test_spark", "test_stored"),
    "files": ("test_cells", "test_content", "test_idx", "test_series"),
    "cuda": ("test_compiled", "test_stub", "test_without_gpu"),
    "cpu": ("test_pairs", "test_tiles"),
    "opencl": ("test_driver", "test_source"),
    "native": ("test_ahead", "test_cache", "test_compile", "test_limits", "test_llvm"),
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
    "trainer": ("test_checks", "test_metrics_log", "test_moments", "test_precision", "test_trainer"),
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

# Of the others, those that start parallel loops, which .ci/run repeats on each threading layer, `-m threads`.
THREADS = {
    "kernels": ("test_contract", "test_stages"),
    "cpu": ("test_conv_in_place", "test_cpu_specific", "test_gemm", "test_gemm_bfloat16", "test_gemm_tuning"),
    "jit": ("test_aliases", "test_explain", "test_guards", "test_names", "test_programs", "test_series", "test_step"),
    "nn": ("test_images",),
}


def computes_with_numpy_alone(item):
    """Does a test run on the reference device, which has no compiled kernels and no threads? (Of 1,517 that do, three
    also add a few numbers on the cpu.)"""
    call = getattr(item, "callspec", None)
    return "numpy_device" in item.fixturenames or (call is not None and call.params.get("device") == "numpy")


# pytest-xdist runs a group of tests in one process, the groups in this order. Those that start processes are one
# group: they look at processes, shared memory and clocks, which the others of them would disturb. All other files are
# a group each; those that take longest come first, so that both processes end at about the same time.
TESTS = Path(__file__).parent
START_PROCESSES = (
    "parallel", "scripts", "trainer", "test_docs.py", "test_time_limit.py",
    "kernels/cuda/test_workers.py", "kernels/cuda/test_stub.py", "nn/sequences/test_workers.py",
)  # fmt: skip
LONG = (
    "kernels/cuda/test_compiled.py",
    "kernels/test_contract.py",
    "kernels/cpu/test_gemm.py",
    "native/test_ahead.py",
    "native/test_cache.py",
    "ops",
)


def group_of(path):
    """(place in the order, name) of the group of a test file."""
    name = path.relative_to(TESTS).as_posix()
    if name.startswith(START_PROCESSES):
        return 0, "processes"
    return next((place for place, long in enumerate(LONG, 1) if name.startswith(long)), len(LONG) + 1), name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Its own `loadgroup` looks for the group in the name of a test, where pytest 9.2 lets nobody write it."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(config.rootpath / nodeid.partition("::")[0])[1]

    config.option.loadscopereorder = False  # the order is ours
    return Groups(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: group_of(item.path)[0])
    for item in items:
        name, folder = item.path.stem, item.path.parent.name
        if name in ONCE.get(folder, ()) or computes_with_numpy_alone(item):
            item.add_marker("once")
        elif name in THREADS.get(folder, ()) and not item.get_closest_marker("once"):
            item.add_marker("threads")


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
    """A test that has neither mark and starts one fails: it would not be repeated on other threading layers."""
    if not JIT or any(map(request.node.get_closest_marker, ("once", "threads"))):
        yield
        return
    from scratchnet.native import execute, loops

    def start(*args):
        pytest.fail("expected no parallel loop in a test that is not marked `threads`, see tests/conftest.py")

    with mock.patch.object(loops, "_over_blocks", start), mock.patch.object(execute, "_work_together", start):
        yield


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
def numpy_device():
    """The reference device, for tests of what happens above the kernels."""
    with sn.default_device("numpy"):
        yield "numpy"
