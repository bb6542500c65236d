"""Writes the API reference: a page of Markdown for each public module, from signatures and docstrings.

docs/conf.py calls `write` when the site is built; tests/test_docs.py asks `names` whether everything public is there.
Docstrings are plain English with `code` in backticks, so they are no reStructuredText, which Sphinx's autodoc expects.
"""

import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TITLES = {  # of pages; a public module that is not here has the first words of its docstring
    "scratchnet": "Tensors and functions",
    "scratchnet.nn": "Layers and losses",
    "scratchnet.nn.functional": "Layers as functions",
    "scratchnet.nn.init": "Initial weights",
    "scratchnet.nn.utils": "Norms of gradients",
    "scratchnet.optim": "Optimizers",
    "scratchnet.optim.lr_scheduler": "Schedules of the learning rate",
    "scratchnet.data": "Data",
    "scratchnet.metrics": "Metrics",
    "scratchnet.networks": "Networks of the jobs",
    "scratchnet.random": "Random numbers",
    "scratchnet.parallel": "Strategies and collectives",
    "scratchnet.callbacks": "Callbacks",
    "scratchnet.report": "Pictures",
    "scratchnet.testing": "Tests of kernels and derivatives",
    "scratchnet.cuda": "The GPU",
}
CALLED_BY_A_RUN = re.compile(r"on_(fit|step|epoch|exception)")  # methods that docs/runs.md describes once
ITEM = re.compile(r"^([\w*][\w*, .]{0,60}?): (?=\S)")


def spaces() -> dict[str, str]:
    """Each public module, and what its page is called."""
    package = importlib.import_module("scratchnet")
    found = [f"scratchnet.{n}" for n in package.__all__ if isinstance(getattr(package, n), types.ModuleType)]
    others = {
        name: re.split("[:.,;]", doc_of(importlib.import_module(name)))[0] for name in found if name not in TITLES
    }
    return TITLES | others


def public(module: str) -> Iterator[tuple[str, Any]]:
    """(name, value) of all that is public in a module."""
    space = importlib.import_module(module)
    own = [n for n, v in vars(space).items() if getattr(v, "__module__", "") == module and n[0] != "_"]
    for name in sorted(getattr(space, "__all__", own), key=str.lower):
        if not isinstance(value := getattr(space, name), types.ModuleType):
            yield name, value


def methods(value: Any) -> Iterator[tuple[str, Any]]:
    """(name, function) of what a class has of its own."""
    for name in vars(value) if isinstance(value, type) and not issubclass(value, BaseException) else ():
        if name[0] != "_" and not CALLED_BY_A_RUN.match(name) and inspect.isroutine(getattr(value, name)):
            yield name, getattr(value, name)


def undocumented() -> list[str]:
    """What has no docstring, of its own or of what it is based on."""
    missing = []
    for module in spaces():
        for name, value in public(module):
            entries = [(name, value), *((f"{name}.{method}", f) for method, f in methods(value))]
            missing += [f"{module}.{called}" for called, thing in entries if callable(thing) and not doc_of(thing)]
    return missing


def doc_of(value: Any) -> str:
    return inspect.getdoc(value) or ""


def markdown(doc: str) -> str:
    """A docstring as Markdown: indented blocks are code, `name: what it is` at the start of a block an item."""
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", doc):
        lines = block.split("\n")
        if lines[0].startswith(">>>") or all(line.startswith("    ") for line in lines):
            parts.append("```text\n" + inspect.cleandoc(block) + "\n```")
        elif parts and ITEM.match(lines[0]):
            items: list[str] = []
            for line in lines:
                if match := ITEM.match(line):
                    items.append(f"- **{escaped(match.group(1))}**: {escaped(line[match.end() :])}")
                else:
                    items.append("  " + escaped(line.strip()))
            parts.append("\n".join(items))
        else:
            parts.append("\n".join(escaped(line.strip()) for line in lines))
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Plain text for Markdown; what stands in backticks stays."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([\\*_<>\[\]{}$|~#])", r"\\\1", p) for p in pieces)


def signature(value: Any) -> str:
    """Its arguments and defaults, without types, which the text says."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    shown = []
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        default = parameter.default
        if default is not parameter.empty and not re.fullmatch(r"[\w.'\", ()\[\]+-]*", repr(default)):
            default = Named("...")
        shown.append(parameter.replace(annotation=parameter.empty, default=default))
    return str(found.replace(parameters=shown, return_annotation=found.empty))


class Named(str):
    def __repr__(self) -> str:
        return str(self)


def entry(called: str, value: Any, fence: str = "::::::") -> str:
    """The text of one name; of a class also its methods."""
    kind = "class" if isinstance(value, type) else "function" if callable(value) else "data"
    if isinstance(value, type) and issubclass(value, BaseException):
        kind = "exception"
    head = called if kind in ("data", "exception") else called + signature(value)
    inside = [markdown(doc_of(value))] if callable(value) else [f"`{value!r}`"]
    for name, method in methods(value):
        inside.append(f":::::{{py:method}} {name}{signature(method)}\n{markdown(doc_of(method))}\n:::::")
    return f"{fence}{{py:{kind}}} {head}\n" + "\n\n".join(inside) + f"\n{fence}\n"


def page(module: str, title: str = "") -> str:
    """The Markdown of a module."""
    space = importlib.import_module(module)
    intro = markdown(inspect.getdoc(space) or "")
    entries = "\n".join(entry(f"{module}.{name}", value) for name, value in public(module))
    return f"# {title}: `{module}`\n\n{intro}\n\n{entries}"


def write(folder: Path) -> None:
    """Writes all pages, and the page that lists them. Pages that are as before stay, so a second build is short."""
    folder.mkdir(exist_ok=True)
    titles = spaces()
    pages = {f"{module}.md": page(module, title) for module, title in titles.items()}
    rows = "\n".join(f"| [`{module}`]({module}.md) | {title} |" for module, title in titles.items())
    tree = "\n".join(titles)
    pages["index.md"] = (
        "# Reference\n\nEvery public name, with its arguments, from the docstrings of the code.\n\n"
        f"| module | what is there |\n|---|---|\n{rows}\n\n```{{toctree}}\n:hidden:\n{tree}\n```\n"
    )
    for name, text in pages.items():
        file = folder / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
