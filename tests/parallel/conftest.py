"""Groups of processes for tests of collectives; each must leave nothing behind."""

import pytest
from residue import no_residue
from servants import Group

SIZES = (1, 2, 3, 4, 7)


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size}-ranks")
def group(request):
    """Processes of each number in turn, the same for all tests of a file that ask for that number."""
    with no_residue():
        group = Group(request.param)
        yield group
        group.end()
