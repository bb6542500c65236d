"""The README tells the truth: its commands name real files, its examples run and print what it shows."""

import re

import pages

PATH = pages.ROOT / "README.md"
README = PATH.read_text()


def test_examples_print_what_the_readme_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.run_examples(PATH)


def test_it_is_short_and_its_files_and_flags_exist():
    assert len(README.splitlines()) < 200
    assert pages.missing_files(PATH) == []
    assert pages.wrong_commands(PATH) == []
    assert "@" not in re.sub(r"@sn\.\w+", "", README)  # no addresses of people


def test_the_ci_script_finds_both_commands():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert "scripts/train.py" in commands[0]
    assert commands[1].endswith("-m pytest")
