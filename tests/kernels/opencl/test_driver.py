"""The device "cuda" by OpenCL: what is missing, what is refused, and one training step beside the cpu's."""

import importlib.util
import os
import subprocess
import sys

import pytest
from sizes import SIMULATED, THOROUGH

from scratchnet.kernels.opencl import driver

HAS_OPENCL = driver.why_unavailable(0) is None
pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator has no driver")


def run(code, **environment):
    """The last line that a process prints."""
    kept = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def test_without_the_package_and_without_a_device_it_says_so(monkeypatch):
    class NoPlatform:
        Error = RuntimeError

        @staticmethod
        def get_platforms():
            return []

    driver._devices.cache_clear()
    for cl, what in ((None, "the package pyopencl; "), (NoPlatform, "a device of OpenCL, got none")):
        monkeypatch.setattr(driver, "cl", cl)
        assert driver.why_unavailable(0).startswith(f"SCRATCHNET_GPU=opencl: expected {what}")
    driver._devices.cache_clear()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SCRATCHNET_GPU": "vulkan"}, "SCRATCHNET_GPU: expected one of cuda, opencl, got 'vulkan'"),
        ({"SCRATCHNET_GPU": "opencl", "NUMBA_ENABLE_CUDASIM": "1"}, "or NUMBA_ENABLE_CUDASIM=1, got both"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(environment, message):
    assert run("import scratchnet as sn; sn.Tensor([1.0]).to('cuda')", **environment).endswith(message)


def test_an_empty_setting_is_none():
    assert run("import scratchnet as sn; print(sn.cuda.is_available())", SCRATCHNET_GPU="") in ("True", "False")


TRAIN = """
import numpy as np, scratchnet as sn

def trained(device, jit):
    sn.manual_seed(0)
    model = sn.nn.MLP(20, 16, 3).to(device)
    optimizer, loss_of = sn.optim.Adam(model.parameters(), lr=0.01), sn.nn.CrossEntropyLoss()
    x, y = sn.randn(32, 20).to(device), sn.Tensor(np.arange(32) % 3, device=device)

    def step(x, y):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step = sn.jit(step) if jit else step
    return [step(x, y).item() for _ in range(4)]

cpu, eager, jit = trained("cpu", False), trained("cuda", False), trained("cuda", True)
refused = 0
for use in (lambda t: t.__dlpack__(), lambda t: t._data.__dlpack__(), sn.cuda.from_dlpack):
    try:
        use(sn.ones(3, device="cuda"))
    except sn.DeviceError as error:
        refused += "\\n" not in str(error)
print(np.allclose(cpu, eager, rtol=1e-5), eager == jit, sn.cuda.is_available(), refused)
"""


needs_opencl = pytest.mark.skipif(not HAS_OPENCL, reason="needs pyopencl and a device of OpenCL, such as pocl's")


@needs_opencl
def test_a_kernel_with_barriers_and_shared_memory_computes():
    code = "import scratchnet as sn; print(sn.ones(3, 300, device='cuda').softmax(1).sum().item())"
    assert abs(float(run(code, SCRATCHNET_GPU="opencl")) - 3) < 1e-6


@needs_opencl
@pytest.mark.skipif(not THOROUGH, reason="compiles for half a minute: make thorough")
def test_a_network_learns_there_as_on_the_cpu_recorded_or_not():
    assert run(TRAIN, SCRATCHNET_GPU="opencl") == "True True True 3"


@pytest.mark.skipif(importlib.util.find_spec("pyopencl") is None, reason="needs pyopencl")
def test_what_the_compiler_refuses_is_one_line(monkeypatch):
    from scratchnet.errors import DeviceError

    def kernel(x):
        x[0] = 1

    monkeypatch.setattr(driver.source, "translated", lambda function, codes: "__kernel void run( {")
    with pytest.raises(DeviceError, match=r"^opencl: expected .* to compile test_what.*kernel, got ") as caught:
        driver.compiled(kernel, ("[f",), None)
    assert "\n" not in str(caught.value)
