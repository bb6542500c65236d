"""Pages of Markdown as tests: their examples run, their commands and the files they name exist.

A ```python block is executed; the blocks of a page share one namespace, in order. A ```text block right below it is
what it prints. A ```diff block shows an edit that was made: its first line names a file, in which its + lines stand.
"""

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import scratchnet as sn

ROOT = Path(__file__).parents[2]
BOOK = sorted((ROOT / "docs" / "book").glob("*.md"))
COPIES = "contributing.md", "changelog.md"  # in the site, of pages that stand above docs/
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *BOOK]
PAGES = [path for path in PAGES if path.name not in COPIES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"(?<![\w./~-])((?:scripts|scratchnet|tests|docs|\.ci)/[\w./-]*\w)")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")


class Block(NamedTuple):
    """A fenced block: its language, its text, the line it begins on, and what it prints, for Python."""

    language: str
    text: str
    line: int
    printed: str = ""


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page. A text block right below a Python block is part of that one."""
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(text):
        language, body = match.groups()
        if language == "text" and found and found[-1].language == "python" and not text[end : match.start()].strip():
            found[-1] = found[-1]._replace(printed=body)
        else:
            found.append(Block(language, body, text.count("\n", 0, match.start()) + 2))
        end = match.end()
    return found


def run_examples(path: Path) -> None:
    """Executes the Python blocks of a page in the current folder. Raises AssertionError where they print other text."""
    namespace, threads = {"__name__": path.stem}, sn.get_num_threads()
    try:
        for block in blocks(path.read_text()):
            if block.language == "python":
                tree = ast.increment_lineno(ast.parse(block.text, str(path)), block.line - 1)
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(tree, str(path), "exec"), namespace)
                came = printed.getvalue()
                assert came == block.printed, f"{path.name}, line {block.line}: expected\n{block.printed}got\n{came}"
    finally:
        sn.set_num_threads(threads)


def missing_files(path: Path) -> list[str]:
    """The files and links that a page names and that do not exist."""
    text = path.read_text()
    named = [ROOT / name for name in FILE.findall(FENCE.sub("", text))]
    named += [path.parent / link for link in LINK.findall(text) if "://" not in link]
    return [str(name) for name in named if not name.exists()]


def wrong_commands(path: Path) -> list[str]:
    """The commands of a page that name a script, a flag of it, or a target of make that does not exist."""
    wrong = []
    for block in blocks(path.read_text()):
        for line in block.text.splitlines() if block.language == "sh" else ():
            words = shlex.split(line, comments=True)
            known: set[str] = set()
            for word in words:
                if word.startswith("scripts/"):
                    known = flags_of(ROOT / word) if (ROOT / word).exists() else set()
                    wrong += [] if (ROOT / word).exists() else [f"{line}: no {word}"]
                elif word in ("--", "&&"):
                    known = set()
                elif word.startswith("--") and known and word not in known:
                    wrong.append(f"{line}: no flag {word}")
            if words[:1] == ["make"]:
                targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
                wrong += [f"{line}: no target {word}" for word in words[1:] if word not in targets]
    return wrong


def flags_of(script: Path) -> set[str]:
    """The flags of a script, from the fields of its class Config and of those that it is based on."""
    classes = {
        node.name: node
        for file in (ROOT / "scratchnet" / "jobs.py", ROOT / "scripts" / "train.py", script)
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    if script.name != "train.py":  # based on the Config of train.py
        train = ast.parse((ROOT / "scripts" / "train.py").read_text())
        classes["train.Config"] = next(node for node in train.body if isinstance(node, ast.ClassDef))
    waiting, names = [classes["Config"]], ["config"]
    while waiting:
        node = waiting.pop()
        names += [field.target.id.replace("_", "-") for field in node.body if isinstance(field, ast.AnnAssign)]
        waiting += [classes[base] for base in map(ast.unparse, node.bases) if base in classes]
    return {"--help", *(f"--{name}" for name in names), *(f"--no-{name}" for name in names)}


def wrong_edits(path: Path) -> list[str]:
    """The + lines of a page's diffs that do not stand in the file that the diff names."""
    wrong = []
    for block in blocks(path.read_text()):
        if block.language == "diff":
            name, *lines = block.text.splitlines()
            source = {line.strip() for line in (ROOT / name).read_text().splitlines()}
            wrong += [f"{name}: {line}" for line in lines if line.startswith("+") and line[1:].strip() not in source]
    return wrong
