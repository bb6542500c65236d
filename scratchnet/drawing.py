"""Directed graphs as pictures: text in the language of Graphviz (DOT), or SVG by a small layered layout of our own.

The layout is Sugiyama's (IEEE Transactions on Systems, Man, and Cybernetics 11, 1981): a layer for each vertex, below
everything that it depends on; long edges bend at a waypoint in each layer that they cross; vertices are ordered by the
mean place of their neighbours, which leaves few crossings.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .errors import ConfigError

MOST = 1000  # vertices: nobody reads a larger picture
CHARACTER, PADDING, LINE, GAP, RISE = 7.3, 10, 16, 24, 40  # pixels
SWEEPS = 8

# Okabe and Ito's colours, which colour-blind people can tell apart: of lines and bars; and lightened, below dark text.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"
FILLS = {"parameter": "#f7d9a8", "input": "#bfe3f7", "op": "#f2f2f2", "result": "#b5e3d3"}


def html_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table for notebooks."""
    lines = [("th", head), *(("td", row) for row in rows)]
    cells = ["".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) for tag, texts in lines]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


EDGE, ROWS, COLUMNS = 3, 20, 12  # of an array with more rows or columns than these, so many on each side are shown


def html_array(title: str, values: np.ndarray) -> str:
    """An array for notebooks below a title: a table of a vector or matrix, of more dimensions their text."""
    if values.ndim > 2 or not values.size:
        body = f"<pre>{html.escape(np.array2string(values, separator=', ', threshold=100))}</pre>"
    else:
        exact = values.dtype.kind in "biu"
        table = np.atleast_2d(values if exact else values.astype(np.float64))  # a half knows no format
        rows, columns = (_ends(n, most) for n, most in zip(table.shape, (ROWS, COLUMNS), strict=True))
        texts = [[_text(table, i, j, "" if exact else ".4g") for j in columns] for i in rows]
        body = html_table(["", *map(_number, columns)], [[_number(i), *t] for i, t in zip(rows, texts, strict=True)])
    return f"<div><p>{html.escape(title)}</p>{body}</div>"


def _ends(count: int, most: int) -> list[int | None]:
    """The numbers of all, or of the first and the last with None between them."""
    return [*range(count)] if count <= most else [*range(EDGE), None, *range(count - EDGE, count)]


def _number(i: int | None) -> str:
    return "..." if i is None else str(i)


def _text(table: np.ndarray, i: int | None, j: int | None, form: str) -> str:
    return "..." if i is None or j is None else format(table[i, j], form)


class Vertex(NamedTuple):
    """A box: its lines of text, and its kind, a key of FILLS."""

    lines: tuple[str, ...]
    kind: str


class Drawing:
    """A directed graph to look at: `.svg` and `.dot` are texts, `.save(path)` writes one of them.

    A notebook shows the picture. vertices: boxes. edges: pairs (from, to) of their numbers, without a cycle.
    Raises ConfigError for more than 1,000 vertices.
    """

    def __init__(self, title: str, vertices: Iterable[Vertex], edges: Iterable[tuple[int, int]]):
        self.title, self.vertices, self.edges = title, tuple(vertices), tuple(dict.fromkeys(edges))
        if len(self.vertices) > MOST:
            raise ConfigError(f"{title}: expected at most {MOST:,} vertices, got {len(self.vertices):,}; draw a part")

    @property
    def dot(self) -> str:
        """The graph in the language of Graphviz: `dot -Tpdf` makes a figure of it."""
        lines = [f"digraph {json.dumps(self.title)} {{", '  node [style=filled, fontname="sans-serif"];']
        for number, (text, kind) in enumerate(self.vertices):
            label, shape = json.dumps("\n".join(text), ensure_ascii=False), "ellipse" if kind == "op" else "box"
            lines.append(f'  {number} [label={label}, shape={shape}, fillcolor="{FILLS[kind]}"];')
        return "\n".join([*lines, *(f"  {a} -> {b};" for a, b in self.edges), "}\n"])

    @property
    def svg(self) -> str:
        """The picture as SVG, with its title for who cannot see it."""
        layers, ways = _layers(len(self.vertices), self.edges)
        sizes = [_size(vertex) for vertex in self.vertices]
        places, width, height = _places(layers, ways, sizes)
        parts = [f'<path d="{_curve([places[i] for i in way], sizes, way)}"/>' for way in ways]
        boxes = [_box(v, places[i], sizes[i]) for i, v in enumerate(self.vertices)]
        arrow = (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0L8 4L0 8z" fill="#888"/></marker></defs>'
        )
        title = html.escape(self.title)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'role="img" aria-label="{title}" style="max-width: 100%; height: auto" font-family="sans-serif" '
            f'font-size="12" text-anchor="middle"><title>{title}</title>{arrow}'
            f'<g fill="none" stroke="#888" stroke-width="1.3" marker-end="url(#arrow)">{"".join(parts)}</g>'
            f"{''.join(boxes)}</svg>"
        )

    def save(self, path: str | Path) -> None:
        """Writes a file: SVG or DOT, by its ending. Raises ConfigError for another ending, or what takes no file."""
        file = Path(checks.path("Drawing.save", path))
        if file.suffix not in (".svg", ".dot"):
            checks.refuse("Drawing.save", "a file that ends in .svg or .dot", str(path))
        try:
            file.write_text(self.svg if file.suffix == ".svg" else self.dot, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: expected a file to write to: {error.strerror}") from None

    def _repr_html_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Drawing({self.title!r}: {len(self.vertices)} vertices, {len(self.edges)} edges; .svg, .dot, .save)"


# --- the layout -------------------------------------------------------------------------------------------------------


def _layers(count: int, edges: tuple[tuple[int, int], ...]) -> tuple[list[list[int]], list[list[int]]]:
    """The vertices of each layer, and the way of each edge: numbers from `count` on are waypoints of long edges."""
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        before[b].append(a)
        after[a].append(b)
    depth, waiting = [0] * count, [len(found) for found in before]
    ready = [i for i in range(count) if not waiting[i]]
    order = []
    while ready:
        order.append(i := ready.pop())
        for j in after[i]:
            depth[j] = max(depth[j], depth[i] + 1)
            waiting[j] -= 1
            if not waiting[j]:
                ready.append(j)
    for i in reversed(order):  # what depends on nothing stands right above its first user
        if not before[i] and after[i]:
            depth[i] = min(depth[j] for j in after[i]) - 1
    layers: list[list[int]] = [[] for _ in range(max(depth, default=0) + 1)]
    for i in sorted(order):
        layers[depth[i]].append(i)
    ways, waypoint = [], count
    for a, b in edges:
        way = [a]
        for layer in range(depth[a] + 1, depth[b]):
            layers[layer].append(waypoint)
            way.append(waypoint)
            waypoint += 1
        ways.append([*way, b])
    _untangle(layers, ways)
    return layers, ways


def _untangle(layers: list[list[int]], ways: list[list[int]]) -> None:
    """Orders each layer by the mean place of its neighbours above, then below, several times."""
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for way in ways:
        for a, b in itertools.pairwise(way):
            below.setdefault(a, []).append(b)
            above.setdefault(b, []).append(a)
    place = {i: k / max(len(layer), 1) for layer in layers for k, i in enumerate(layer)}
    for sweep in range(SWEEPS):
        near = below if sweep % 2 else above
        for layer in reversed(layers) if sweep % 2 else layers:
            means = {i: sum(place[j] for j in near[i]) / len(near[i]) if i in near else place[i] for i in layer}
            layer.sort(key=means.__getitem__)
            place.update({i: (k + 0.5) / len(layer) for k, i in enumerate(layer)})


def _size(vertex: Vertex) -> tuple[float, float]:
    return max(map(len, vertex.lines)) * CHARACTER + 2 * PADDING, len(vertex.lines) * LINE + PADDING


def _places(
    layers: list[list[int]], ways: list[list[int]], sizes: list[tuple[float, float]]
) -> tuple[dict[int, tuple[float, float]], float, float]:
    """The centre of each vertex and waypoint; the width and height of the picture."""
    sizes_of = dict(enumerate(sizes))
    widths = [sum(sizes_of.get(i, (0, 0))[0] for i in layer) + GAP * (len(layer) - 1) for layer in layers]
    width, y, places = max([*widths, 1]) + 2 * GAP, GAP / 2, {}
    for layer, taken in zip(layers, widths, strict=True):
        x, tall = (width - taken) / 2, max([sizes_of.get(i, (0, LINE))[1] for i in layer], default=LINE)
        for i in layer:
            wide = sizes_of.get(i, (0, 0))[0]
            places[i] = (x + wide / 2, y + tall / 2)
            x += wide + GAP
        y += tall + RISE
    return places, width, y - RISE + GAP / 2


def _curve(points: list[tuple[float, float]], sizes: list[tuple[float, float]], way: list[int]) -> str:
    """A smooth path from the lower edge of the first box to the upper edge of the last one."""
    (x, y), (end, bottom) = points[0], points[-1]
    points = [(x, y + sizes[way[0]][1] / 2), *points[1:-1], (end, bottom - sizes[way[-1]][1] / 2)]
    text = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (a, b), (c, d) in itertools.pairwise(points):
        middle = (b + d) / 2
        text += f"C{a:.1f} {middle:.1f} {c:.1f} {middle:.1f} {c:.1f} {d:.1f}"
    return text


def _box(vertex: Vertex, place: tuple[float, float], size: tuple[float, float]) -> str:
    (x, y), (wide, tall) = place, size
    first = y - (len(vertex.lines) - 1) * LINE / 2 + 4
    texts = [
        f'<text x="{x:.1f}" y="{first + k * LINE:.1f}" fill="#222" font-weight="{400 if k else 700}">'
        f"{html.escape(line)}</text>"
        for k, line in enumerate(vertex.lines)
    ]
    corner: Any = tall / 2 if vertex.kind == "op" else 4
    return (
        f'<rect x="{x - wide / 2:.1f}" y="{y - tall / 2:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="{corner}" '
        f'fill="{FILLS[vertex.kind]}" stroke="#555"/>{"".join(texts)}'
    )
