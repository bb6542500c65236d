"""The README tells the truth: its commands name real files, its examples run and print what it shows."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", README, re.S)


@pytest.mark.parametrize(("code", "output"), BLOCKS)
def test_examples_print_what_the_readme_shows(code, output):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue() == output


def test_it_is_short_and_its_files_exist():
    assert len(README.splitlines()) < 200
    for name in re.findall(r"(?<![\w./-])((?:scripts|scratchnet)/[\w./-]+)", README):
        assert (ROOT / name.rstrip(".")).exists(), name
    assert "@" not in re.sub(r"@sn\.\w+|x @ weight|@given", "", README)


def test_the_ci_script_finds_both_commands():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert "scripts/train.py" in commands[0]
    assert commands[1].endswith("-m pytest")
