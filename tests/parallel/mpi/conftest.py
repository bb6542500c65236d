"""MPI for the tests of this folder, which are skipped without it."""

import pytest
from servants import NO_MPI, MpiGroup
from sizes import THOROUGH

SIZES = (1, 2, 3, 4) if THOROUGH else (1, 3, 4)  # two ranks train in tests of their own


@pytest.fixture(autouse=True, scope="session")
def _needs_mpi():
    if NO_MPI:
        pytest.skip(NO_MPI)


@pytest.fixture(scope="session", params=SIZES, ids=lambda size: f"{size}-ranks")
def group(request, tmp_path_factory):
    """Ranks that mpirun started, the same for all tests that ask for that number."""
    group = MpiGroup(request.param, tmp_path_factory.mktemp("group"))
    yield group
    group.end()
