"""In the simulator, kernels of the cuda table run on tiny blocks and tiles, thread by thread, with every check."""

import pytest
from sizes import SIMULATED


@pytest.fixture(autouse=True, scope="session")
def _interpreted():
    if not SIMULATED:
        yield
        return
    from scratchnet.kernels.cuda import tuning
    from scratchnet.testing.threads import interpreted

    with tuning.use(tuning.TINY), interpreted():
        yield
