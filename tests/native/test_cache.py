"""A cache that many processes fill together, lose and damage; seen from outside, by scripts in fresh processes."""

import ast
import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import structure
from kernel_scripts import RIGHT, Scripts

import scratchnet
from scratchnet.native import cache
from scratchnet.native.compile import JIT_ENABLED

PACKAGE = Path(scratchnet.__file__).parent

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="nothing is compiled")


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Scripts that ran twice, on an empty and on a filled cache."""
    scripts = Scripts(tmp_path_factory.mktemp("warm"), "two_kernels")
    scripts.first, scripts.second = scripts.run("two_kernels"), scripts.run("two_kernels")
    return scripts


@pytest.fixture
def filled(warm, tmp_path):
    """Scripts with a filled cache of their own, except where their folder is part of what is compiled."""
    shutil.copytree(warm.cache, tmp_path / "cache")
    return Scripts(tmp_path, "two_kernels", "patient_kernels", "lock_holder")


@pytest.fixture
def scripts(filled):
    """Scripts whose cache has no kernels yet."""
    for file in filled.files():
        file.unlink()
    return filled


def compiled(run):
    return run["stats"][0]


@needs_jit
def test_a_second_process_compiles_nothing(warm):
    assert warm.first["stats"][:2] == [4, 0]  # two kernels, and what each calls
    assert warm.second["stats"] == [0, 2, 0.0]
    assert warm.first["results"] == warm.second["results"] == RIGHT


@needs_jit
def test_a_warm_start_leaves_most_of_numba_asleep(warm):
    assert warm.second["modules"] == []


@needs_jit
def test_the_first_run_says_that_it_compiles_and_the_second_is_silent(warm):
    first, last = warm.first["stderr"].splitlines()
    assert first == "scratchnet: compiling kernels for this CPU, once ..."
    assert last.startswith("scratchnet: compiled 4 kernels in ") and str(warm.cache) in last
    assert warm.second["stderr"] == ""


@needs_jit
def test_parallel_kernels_are_cached_too(scripts):
    scripts.write(
        "two_kernels", ("range(x.size)", "prange(x.size)"), ("@jit\ndef elem", "@jit(parallel=True)\ndef elem")
    )
    assert compiled(scripts.run("two_kernels")) == 4
    second = scripts.run("two_kernels")
    assert compiled(second) == 0 and second["results"] == RIGHT


@needs_jit
def test_a_changed_source_is_compiled_anew(filled):
    filled.write("two_kernels", ("return 2 * x", "return 5 * x"))
    assert filled.run("two_kernels")["results"] == [[0, 1, 4, 9], [0, 5, 10, 15]]


@needs_jit
def test_processes_that_start_together_share_the_work(scripts):
    runs = [scripts.finish(process) for process in [scripts.start("two_kernels") for _ in range(3)]]
    assert [run["results"] for run in runs] == [RIGHT] * 3
    assert sum(map(compiled, runs)) == 4


@needs_jit
def test_a_damaged_file_is_compiled_anew(filled):
    flipped, cut, empty, _ = filled.files()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    empty.write_bytes(b"")
    repaired = filled.run("two_kernels")
    assert compiled(repaired) == 3 and repaired["results"] == RIGHT
    assert compiled(filled.run("two_kernels")) == 0


@needs_jit
def test_without_a_writable_folder_kernels_compile_in_memory(scripts):
    run = scripts.run("two_kernels", SCRATCHNET_CACHE_DIR=os.path.join(os.devnull, "none"))
    assert compiled(run) == 4 and run["results"] == RIGHT and "no writable cache folder" in run["stderr"]


def test_what_a_full_disk_does_not_keep_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        cache, "_write", lambda file, content: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
    )
    monkeypatch.setattr(cache, "writable_folder", lambda: tmp_path)
    session = cache._Session()
    session.keep(tmp_path / "a.kernel", b"")
    session._summarise()
    assert f"(not all kept in {tmp_path}: No space left)" in capsys.readouterr().err


@pytest.fixture
def holder(scripts, warm):
    """A process that has the right to make every kernel, and does not use it."""
    process = scripts.start("lock_holder", *(file.stem for file in warm.files()))
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@needs_jit
def test_a_killed_process_gives_up_its_locks_and_its_half_written_files(scripts, holder):
    waiting = scripts.start("patient_kernels")
    assert waiting.stdout.readline() == "waiting\n"
    holder.kill()
    run = scripts.finish(waiting)
    assert compiled(run) == 4 and run["results"] == RIGHT
    assert len(scripts.files()) == 4 and not list(scripts.cache.glob("*/*.tmp"))


@needs_jit
def test_a_stopped_process_does_not_stop_the_others(scripts, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    impatient = (
        "import two_kernels; from scratchnet.native import cache; cache.session._patience = 0.2; two_kernels.main()"
    )
    run = scripts.run(None, code=impatient, SCRATCHNET_QUIET="1")
    assert compiled(run) == 4 and run["results"] == RIGHT and run["stderr"] == ""


# --- what the name of a folder says -----------------------------------------------------------------------------------

# Files that sources of kernels import although nothing in them is compiled.
NOT_COMPILED = {"errors.py", "checks.py"}


def sources():
    return {path.relative_to(PACKAGE).as_posix() for path in cache._sources(PACKAGE)}


def files_of_kernels():
    """The files that make kernels for the CPU, or intrinsics that kernels are made of."""
    for name, path in structure.files(PACKAGE).items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        makers = {(str(node.module).rpartition(".")[2], alias.name) for node in nodes for alias in node.names}
        if makers & {("compile", "jit"), ("compile", "stamp"), ("loops", "ranged"), ("extending", "intrinsic")}:
            yield name


def test_whatever_a_kernel_may_be_compiled_from_is_hashed():
    graph = structure.imports(PACKAGE)
    reached, ahead = set(), list(files_of_kernels())
    while ahead:
        name = ahead.pop()
        if name not in reached | NOT_COMPILED:
            reached.add(name)
            ahead += graph[name]
    assert len(reached) > 20 and sorted(reached - sources()) == []


@pytest.mark.parametrize("name", sorted(sources()))
def test_an_edit_of_any_source_gives_the_folder_another_name(tmp_path, name):
    for source in sources():
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / source, tmp_path / source)
    assert cache._package_digest(tmp_path) == cache._PACKAGE_DIGEST
    with (tmp_path / name).open("a") as file:
        file.write("# changed\n")
    assert cache._package_digest(tmp_path) != cache._PACKAGE_DIGEST


def folder(monkeypatch, **environment):
    """The cache folder that a process with this environment has."""
    for name in ("SCRATCHNET_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    return cache._folder.__wrapped__()


def test_the_cache_is_where_the_user_keeps_caches(tmp_path, monkeypatch):
    home, caches, ours = (tmp_path / name for name in ("home", "caches", "ours"))
    assert folder(monkeypatch, HOME=home).parent == home / ".cache" / "scratchnet"
    assert folder(monkeypatch, HOME=home, XDG_CACHE_HOME=caches).parent == caches / "scratchnet"
    assert folder(monkeypatch, XDG_CACHE_HOME=caches, SCRATCHNET_CACHE_DIR=ours).parent == ours
    assert folder(monkeypatch, SCRATCHNET_CACHE_DIR=os.devnull) is None


def test_a_stale_folder_is_removed_and_a_fresh_one_is_not(tmp_path, monkeypatch):
    for name, days in [("kernels-old", 100), ("kernels-fresh", 1), ("foreign-old", 100)]:
        (tmp_path / name).mkdir()
        then = time.time() - days * 86400
        os.utime(tmp_path / name, (then, then))
    ours = folder(monkeypatch, SCRATCHNET_CACHE_DIR=tmp_path).name
    assert {path.name for path in tmp_path.iterdir()} == {"kernels-fresh", "foreign-old", ours}
