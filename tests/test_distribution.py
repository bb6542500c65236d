"""What people install: the name, the version, and what a wheel and an sdist hold."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import scratchnet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = PROJECT["project"]["name"]
BUILD = "import sys; from setuptools.build_meta import *; out = sys.argv[1]; build_sdist(out), build_wheel(out)"
GENERATED = ("PKG-INFO", "setup.cfg", NAME.replace("-", "_") + ".egg-info/")  # what setuptools adds to an sdist


def checkout() -> list[str]:
    """The files of the checkout, tracked or about to be; in an unpacked sdist, which is not one, the test skips."""
    if not (ROOT / ".git").exists():
        pytest.skip("expected a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist, built from a copy of the checkout, as setuptools leaves files beside."""
    pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in checkout():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_nobody_is_told_to_install_the_name_that_is_not_ours():
    """Neither `pip install` with the bare name or one of its extras, nor with ours, which no index has."""
    wrong = re.compile(r"pip\S* install\b[^\n`]*?(?<![\w./])scratchnet(?!_engine)[\w-]*(?![\w./-])|scratchnet\[")
    for name in checkout():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".ipynb", ".sh", ".yaml", "") and path != Path(__file__):
            found = wrong.search(path.read_text())
            assert not found, f"{name}: {found.group()}"
    for text in ("pip install scratchnet", "pip install -U 'scratchnet[cuda]'", "pip install scratchnet-engine"):
        assert wrong.search(text)
    for text in ('pip install -e ".[train]" && python scripts/train.py', "pip install dist/scratchnet_engine-1.whl"):
        assert not wrong.search(text)


def test_the_version_stands_in_one_place_and_heads_the_change_log():
    assert "version" in PROJECT["project"]["dynamic"]
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == scratchnet.__version__


def test_the_modules_that_the_change_log_names_as_new_homes_exist():
    rows = re.findall(r"^\| `.*` \| (`scratchnet\..*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert rows
    for name in re.findall(r"`(scratchnet[^`]+)`", " ".join(rows)):
        stem, _, names = name.removesuffix("}").partition("{")
        for module in [stem + part.strip() for part in names.split(",")] if names else [name]:
            path = ROOT / module.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), module


def test_the_sdist_holds_every_file_of_the_checkout(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {name for name in names if not name.startswith(GENERATED)} == set(checkout())


def test_the_wheel_holds_the_package_and_the_scripts_that_its_command_runs(built):
    (path,) = built.glob("*.whl")
    assert path.name == f"{NAME.replace('-', '_')}-{scratchnet.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {name for name in checkout() if name.startswith("scratchnet/")}
    assert names == package | {f"scratchnet/{name}" for name in checkout() if re.match(r"scripts/.*\.py$", name)}


def test_a_wheel_trains_outside_the_checkout(built, tmp_path):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "scratchnet", "train", "--epochs", "1", "--hidden", "8", "--folder", "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "SCRATCHNET_QUIET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert (tmp_path / "run" / "curves.png").exists()
