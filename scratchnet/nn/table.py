"""What a notebook shows of a module: a row for each layer, with the shapes and the number of its own parameters."""

from __future__ import annotations

from typing import Any

from ..drawing import html_table


def table_of(module: Any) -> str:
    """HTML. A layer has a row if it has parameters or nothing inside; shared parameters count where they come first."""
    own: dict[str, list[Any]] = {}
    for name, p in module.named_parameters():
        own.setdefault(name.rpartition(".")[0], []).append(p)
    rows = []
    for name, layer in module.named_modules():
        mine = own.get(name, [])
        if mine or not any(layer.children()):
            shapes = ", ".join(str(tuple(p.shape)) for p in mine)
            what = f"{type(layer).__name__}({layer.extra_repr()})"
            rows.append([name, what, shapes, f"{sum(p.size for p in mine):,}"])
    total = sum(p.size for p in module.parameters())
    return html_table(["name", "layer", "shapes", "parameters"], [*rows, ["", "all", "", f"{total:,}"]])
