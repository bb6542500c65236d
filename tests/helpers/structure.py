"""What the source files of a package import, and how long they are: read from the text, nothing is imported.

Each check takes the package's folder and returns the violations as lines of text, so that tests can plant one.
"""

import ast
import functools
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def files(package: Path) -> dict[str, Path]:
    """{path below the package: file} of all its source files."""
    return {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}


COMPUTING = "import_module", "__import__"

# --- imports ----------------------------------------------------------------------------------------------------------


def imports(package: Path) -> dict[str, dict[str, int]]:
    """{file: {imported file of the package: line}}, by paths below the package.

    At the top, inside functions, and under TYPE_CHECKING: an arrow is an arrow. `from .a import b` imports the file
    a/b.py if there is one, else a.py or a/__init__.py. That Python also runs the `__init__` files above is not counted:
    they only gather what others import from them.
    """
    sources = files(package)
    graph: dict[str, dict[str, int]] = {}
    for name, path in sources.items():
        graph[name] = {}
        for line, module, names in _imported(path, [package.name, *Path(name).parent.parts]):
            if module[0] != package.name:
                continue
            for last in names:
                target = _file([*module[1:], last], sources) if last else None
                target = target or _file(module[1:], sources)
                if target and target != name:
                    graph[name].setdefault(target, line)
    return graph


def _imported(path: Path, folder: list[str]) -> Iterator[tuple[int, list[str], list[str]]]:
    """(line, module, names taken from it) of each import statement; no name where the module itself is imported."""
    for node in ast.walk(parsed(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            yield node.lineno, module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split("."), [""]


def taken_from(package: str, folder: Path) -> list[tuple[str, str]]:
    """(file:line, name) of what files below `folder` import from a package, its modules included, or read from it."""
    found, last = [], package.rpartition(".")[2]
    for name, path in files(folder).items():
        tree = parsed(path.read_text())
        for line, module, names in _imported(path, []):
            whole = ".".join(module)
            inside = whole.removeprefix(f"{package}.").split(".")[0] if whole.startswith(f"{package}.") else None
            taken = [inside] if inside else names if whole == package else []
            found += [(f"{name}:{line}", other) for other in taken if other]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == last:
                found.append((f"{name}:{node.lineno}", node.attr))
    return found


def _file(parts: list[str], sources: Mapping[str, Path]) -> str | None:
    candidates = "/".join(parts) + ".py", "/".join([*parts, "__init__.py"])
    return next((name for name in candidates if name in sources), None)


def cycles(package: Path) -> list[list[str]]:
    """Each group of files that import each other, directly or through others (Tarjan's components)."""
    graph = imports(package)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(file: str) -> None:
        number[file] = lowest[file] = len(number)
        stack.append(file)
        for other in graph[file]:
            if other not in number:
                visit(other)
            if other in stack:
                lowest[file] = min(lowest[file], lowest[other])
        if lowest[file] == number[file]:
            group = stack[stack.index(file) :]
            del stack[stack.index(file) :]
            if len(group) > 1:
                found.append(sorted(group))

    for file in graph:
        if file not in number:
            visit(file)
    return sorted(found)


def upward(package: Path, layers: Iterable[str], gathering: Iterable[str] = ("__init__.py",)) -> list[str]:
    """Imports of a file from its own layer or a higher one, and files that are in no layer.

    layers: from the lowest up, each the files and folders that may not know each other, with spaces between them.
    A file belongs to the longest name that it begins with. Inside one folder any arrow is allowed here: see `cycles`.
    """
    rank = {part: i for i, layer in enumerate(layers) for part in layer.split()}

    def home(file: str) -> str | None:
        return max((part for part in rank if _is_in(file, part)), key=len, default=None)

    found = []
    for file, targets in imports(package).items():
        if file in gathering:
            continue
        here = home(file)
        if here is None:
            found.append(f"{file} is in no layer")
            continue
        for target, line in targets.items():
            there = home(target)
            if there is None or (there != here and rank[there] >= rank[here]):
                found.append(f"{file}:{line} imports {target}")
    return found


def banned(package: Path, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Imports of a file of the first of a pair from the second."""
    return [
        f"{file}:{line} imports {target}"
        for file, targets in imports(package).items()
        for target, line in targets.items()
        if any(_is_in(file, ours) and _is_in(target, theirs) for ours, theirs in pairs)
    ]


def _is_in(file: str, part: str) -> bool:
    return file == f"{part}.py" or file.startswith(f"{part}/")


def computed_imports(package: Path, allowed: Iterable[str] = ()) -> list[str]:
    """Uses of importlib and `__import__`, which hide an arrow from the checks above; the first in each file."""
    found = []
    for name, path in files(package).items():
        for node in ast.walk(parsed(path.read_text())):
            modules = {
                *([node.module] if isinstance(node, ast.ImportFrom) else []),
                *([alias.name for alias in node.names] if isinstance(node, ast.Import) else []),
            }
            if "importlib" in modules or (
                isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).split(".")[-1] in COMPUTING
            ):
                if name not in allowed:
                    found.append(f"{name}:{node.lineno} computes an import")
                break
    return found


def asks_which(package: Path, family: Iterable[str]) -> list[str]:
    """Questions which subclass an object is: `isinstance(x, Sub)`, where Sub inherits from one of `family` by name.

    A subclass says itself what is particular to it; only the base may be asked for, to check an argument.
    """
    trees = {name: parsed(path.read_text()) for name, path in files(package).items()}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    subclasses = {c.name for c in classes if any(isinstance(b, ast.Name) and b.id in family for b in c.bases)}
    return [
        f"{name}:{node.lineno} asks for a {found}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        for kind in ast.walk(node.args[1])
        if (found := getattr(kind, "id", getattr(kind, "attr", None))) in subclasses
    ]


# --- sizes ------------------------------------------------------------------------------------------------------------


def long_files(folder: Path, limit: int) -> list[str]:
    """Files of more lines than that."""
    lengths = {name: len(path.read_text().splitlines()) for name, path in files(folder).items()}
    return [f"{name} has {length} lines" for name, length in lengths.items() if length > limit]


def full_folders(package: Path, limit: int, exempt: Iterable[str] = ()) -> list[str]:
    """Folders of more source files than that."""
    counts: dict[str, int] = {}
    for name in files(package):
        folder = Path(name).parent.as_posix()
        counts[folder] = counts.get(folder, 0) + 1
    return [f"{name} has {count} files" for name, count in counts.items() if count > limit and name not in exempt]


def long_signatures(package: Path, limit: int) -> list[str]:
    """Functions of more parameters than that, `self` aside; the constructors of public classes may have more."""
    found = []
    for name, path in files(package).items():
        tree = parsed(path.read_text())
        owners = {id(item): node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body}
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            owner, arguments = owners.get(id(node)), node.args
            called = getattr(node, "name", "lambda")
            if owner and called == "__init__" and not owner.name.startswith("_"):
                continue
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            count = len(names) - (bool(owner) and names[:1] in (["self"], ["cls"]))
            if count > limit:
                found.append(f"{name}:{node.lineno} {called} has {count} parameters")
    return found


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor a comment, nor part of a docstring."""
    source = path.read_text()
    lines: set[int] = set()
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - _docstring_lines(parsed(source)))


def _docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            lines.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines
