"""The host side of the cuda table under a driver without a GPU (tests/helpers/stub_driver.c), in processes of its own.

The stub is the laziest GPU that the rules allow, refuses what a driver refuses, and looks at the arguments of each
launch. Its kernels compute nothing: what comes out of them is the simulators' matter.
"""

import importlib.util
import json
import subprocess
import sys

import pytest
import stub_driver
from sizes import SIMULATED, THOROUGH

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator has no driver"),
    pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda"),
    pytest.mark.skipif(stub_driver.why_none() is not None, reason=str(stub_driver.why_none())),
]

ONE_GPU = (
    "start", "eager", "jit", "transfers", "foreign_memory_is_read_after_its_kernels",
    "foreign_memory_is_kept_until_our_kernels_are_done", "dlpack_export", "out_of_memory", "threads", "large_grids",
    "every_argument_lies_where_the_kernel_reads_it", "numbers_of_a_graph", "others_launch_while_a_graph_is_made",
    "forked", "loss_scale",
)  # fmt: skip


@pytest.fixture(scope="module")
def seen():
    """What all scenes on one GPU saw, in one process."""
    return stub_driver.facts_of("stub_facts.py", *ONE_GPU, *["--compile"] * THOROUGH, timeout=600)


def refused(**settings):
    return stub_driver.facts_of("stub_facts.py", "start", **settings)["start"]


# --- what there is ----------------------------------------------------------------------------------------------------


def test_gpus_are_found_without_a_context_on_one(seen):
    assert seen["start"] == {"why": None, "count": 1, "contexts": [0, 0]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"version": 12080},
            "expected a driver for CUDA 13, got one for 12.8; it needs pip install 'numba-cuda[cu12]'",
        ),
        ({"capability": 70}, "expected a GPU of compute capability 7.5 or more, got 7.0"),
        ({"devices": 0}, "expected an NVIDIA GPU and its driver, got none"),
    ],
)
def test_a_machine_that_cannot_compute_is_refused_in_one_line(settings, words):
    assert words in refused(**settings)


def test_a_process_computes_on_the_gpu_that_it_chose_in_all_its_threads():
    found = stub_driver.facts_of("stub_facts.py", "second_gpu", devices=2)["second_gpu"]
    assert found["number"] == [2, 1] and found["contexts"] == [0, 1] and found["threads"] == []
    assert found["another"] == "DeviceError: cuda: expected one GPU a process, 'cuda:1', got 'cuda:0'"
    assert found["missing"] == "DeviceError: cuda: expected a GPU from 'cuda:0' to 'cuda:1', got 'cuda:7'"


def test_threads_do_not_disturb_each_other(seen):
    assert seen["threads"] == []


def test_a_forked_process_is_told_to_start_by_spawn(seen):
    assert "CUDA_ERROR_NOT_INITIALIZED" in seen["forked"] and seen["forked"].endswith("start it by spawn")


# --- launches ---------------------------------------------------------------------------------------------------------


def test_a_step_launches_what_it_must_and_allocates_nothing_new(seen):
    assert seen["eager"]["launches, allocations, loads"] == [21, 0, 0]


def test_a_replay_is_one_graph_and_copies_of_inputs_and_results(seen):
    """launches, graphs, copies there, copies to there, captures."""
    found = seen["jit"]
    recorded, again, first, *replays = found["calls"]
    assert recorded[0] > 15 and recorded[1] == again[1] == 0
    assert first == [20, 0, 3, 1, 1]  # one by one, then captured; copies of x, y, the loss
    assert replays == [[0, 1, 3, 1, 0]] * 2  # numbers are sent: the key of dropout is new in each step
    assert found["allocations, loads"] == [0, 0]
    assert [calls[4] for calls in found["others"]] == [0, 0, 1, 0]  # other shapes have a graph of their own


def test_a_graph_reads_rates_and_keys_that_are_new_in_each_step(seen):
    found = seen["numbers_of_a_graph"]
    assert [rate for rate, _ in found] == [0.125, 0.0625, 0.03125]
    assert len({page for _, page in found}) == 3


def test_launches_of_other_threads_stay_out_of_a_graph(seen):
    found = seen["others_launch_while_a_graph_is_made"]
    assert found["seen"] == [1] and found["performed"] == found["launches"]


def test_where_a_driver_makes_no_graph_launches_are_started_one_by_one():
    found = stub_driver.facts_of("stub_facts.py", "without_graphs", no_graphs=1)["without_graphs"]
    assert found[3] == [10, 0]


def test_every_argument_lies_where_the_kernel_reads_it(seen):
    found = seen["every_argument_lies_where_the_kernel_reads_it"]
    assert found["seen"] > 10 and not found["wrong"]


def test_kernels_are_on_disk_for_the_next_process_their_arguments_lie_as_compiled_and_numpy_2_5_is_enough(
    tmp_path, monkeypatch
):
    """The machine code itself says where it reads each argument."""
    monkeypatch.setenv("SCRATCHNET_CACHE_DIR", str(tmp_path))
    scenes = "compiled_here", "every_argument_lies_where_the_kernel_reads_it"
    first, second = (stub_driver.facts_of("stub_facts.py", *scenes, "--compile", "--numpy-2.5") for _ in range(2))
    assert first["compiled_here"] == [3, 0] and second["compiled_here"] == [0, 3]
    assert first["every_argument_lies_where_the_kernel_reads_it"]["seen"] == 3
    assert not first["every_argument_lies_where_the_kernel_reads_it"]["wrong"]


def test_a_run_in_float16_has_its_loss_scale(seen):
    assert seen["loss_scale"] == [2**16, 0]


def test_a_grid_may_have_millions_of_rows_and_columns(seen):
    assert seen["large_grids"] and not [name for name, error in seen["large_grids"].items() if error]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_transfers_are_right_on_a_gpu_that_puts_everything_off(seen):
    assert seen["transfers"] == {"batches": [True] * 6, "pieces": [1, 2], "pageable": True}


def test_memory_that_waits_is_given_up_before_a_tensor_is_refused(seen):
    found = seen["out_of_memory"]
    assert (
        found["refused"].startswith("DeviceError: cuda: expected ")
        and "bytes of free device memory" in found["refused"]
    )
    assert found["grown"] == 0


def test_memory_of_other_libraries_is_read_after_their_kernels(seen):
    assert seen["foreign_memory_is_read_after_its_kernels"] == [True, True]


def test_memory_of_other_libraries_is_kept_until_our_kernels_are_done(seen):
    for held, is_right, left in seen["foreign_memory_is_kept_until_our_kernels_are_done"]:
        assert held and is_right and not left


def test_dlpack_names_its_gpu_orders_by_an_event_and_does_what_it_is_asked(seen):
    found = seen["dlpack_export"]
    assert found["waits"] == [1, 0] and found["unordered"] == 0 and found["device"] == [2, 0]
    assert found["shared"] and found["copied"]
    assert found["to the host"] == (
        "DeviceError: __dlpack__: expected dl_device (2, 0) or None, got (1, 0); .numpy() copies to the host"
    )
    assert "expected a stream as a positive integer" in found["stream 0"]
    assert found["of the host"].endswith("expected memory of 'cuda:0', on which we compute, got memory of the host")
    assert found["of GPU 1"].endswith("expected memory of 'cuda:0', on which we compute, got 'cuda:1'")


# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_train_on_two_gpus_and_the_parent_leaves_both_to_them():
    found = stub_driver.facts_of("stub_facts.py", "parent_of_workers", devices=2)["parent_of_workers"]
    assert sum(found["shards"]) == 4 and found["starts"] == [1, 1] and found["contexts"] == [0, 0]


# --- the command for a machine with a GPU -----------------------------------------------------------------------------


def test_the_check_runs_its_phases_in_processes_of_their_own_and_leaves_a_report(tmp_path):
    script = stub_driver.ROOT / "scripts" / "gpu" / "check"
    command = [sys.executable, script, "--folder", tmp_path, "--only", "machine"]
    done = subprocess.run(command, capture_output=True, text=True, env=stub_driver.environment())
    assert done.returncode == 0 and "ALL WELL" in done.stdout, done.stdout + done.stderr
    (row, phase) = json.loads((tmp_path / "report.json").read_text())["machine"]
    assert row["gpu"] == "Stub 0" and row["compute_capability"] == [9, 0] and phase["seconds_of_phase"] < 120
