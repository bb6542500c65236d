"""Pictures of graphs: every op and every tensor of a record once, every call of a program, texts that parse."""

import xml.etree.ElementTree as xml

import numpy as np
import pytest
from messages import refused

import scratchnet as sn
from scratchnet.drawing import FILLS, Drawing, Vertex
from scratchnet.errors import ConfigError, GradientError, JitError


def network():
    sn.manual_seed(0)
    return sn.nn.MLP(4, 8, 3), np.ones((5, 4), np.float32)


def texts(drawing):
    return [" ".join(v.lines) for v in drawing.vertices]


def named_edges(drawing):
    names = [v.lines[0] for v in drawing.vertices]
    return {(names[a], names[b]) for a, b in drawing.edges}


def test_a_record_has_each_op_and_each_leaf_once_and_parameters_have_their_names():
    model, x = network()
    drawing = sn.draw((model(x) * 2).sum(), model)
    assert sorted(texts(drawing)) == sorted([
        "input 5 x 4", "linear1.weight 4 x 8", "linear1.bias 8", "linear 5 x 8", "relu 5 x 8", "linear2.weight 8 x 3",
        "linear2.bias 3", "linear 5 x 3", "input number", "mul 5 x 3", "sum number",
    ])  # fmt: skip
    assert {("linear1.weight", "linear"), ("linear", "relu"), ("relu", "linear"), ("mul", "sum")} < named_edges(drawing)
    assert len(drawing.edges) == 10
    kinds = {v.lines[0]: v.kind for v in drawing.vertices}
    assert [kinds[name] for name in ("input", "linear1.bias", "mul", "sum")] == ["input", "parameter", "op", "result"]


def test_a_tensor_that_is_used_twice_is_one_box():
    x = sn.Tensor([2.0], requires_grad=True)
    y = x.exp()
    drawing = sn.draw(y * y + x)
    assert texts(drawing).count("exp 1") == 1 and texts(drawing).count("parameter 1") == 1
    assert named_edges(drawing) == {("parameter", "exp"), ("exp", "mul"), ("mul", "add"), ("parameter", "add")}


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_program_has_each_kernel_call_and_reads_what_was_written_before(device):
    model, x = network()
    model.to(device)
    optimizer = sn.optim.SGD(model.parameters(), lr=0.1)

    @sn.jit
    def step(x):
        loss = (model(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    assert "called at least twice" in refused(JitError, lambda: sn.draw(step))
    assert step._repr_html_() is None
    for _ in range(3):
        step(sn.Tensor(x, device=device))
    drawing = sn.draw(step, model)
    names = [v.lines[0] for v in drawing.vertices]
    calls = [instruction.call.kernel for instruction in step.programs[-1].instructions]
    assert sorted(v.lines[0] for v in drawing.vertices if v.kind == "op") == sorted(calls)
    assert {name for name, _ in model.named_parameters()} <= set(names)
    assert {("linear1.weight", "linear"), ("linear", "relu"), ("relu", "linear")} < named_edges(drawing)
    assert all("stage" in v.lines[-1] or v.lines[-1] == "by Python" for v in drawing.vertices if v.kind == "op")
    assert all(a < b for a, b in drawing.edges)
    assert step._repr_html_() == sn.draw(step).svg
    updates = [k for k, name in enumerate(names) if "sgd" in name]
    assert len(updates) == 4 and not {a for a, _ in drawing.edges} & {*updates}  # nothing reads what an update wrote
    shapes = {drawing.vertices[k].lines[1] for k in updates}
    assert shapes == {"4 x 8", "8", "8 x 3", "3"}


def test_both_texts_parse_and_boxes_do_not_lie_on_each_other():
    model, x = network()
    drawing = sn.draw((model(x) ** 2).mean(), model)
    root = xml.fromstring(drawing.svg)
    name = "{http://www.w3.org/2000/svg}"
    boxes = [[float(box.get(a)) for a in ("x", "y", "width", "height")] for box in root.iter(f"{name}rect")]
    assert len(boxes) == len(drawing.vertices)
    for i, (x1, y1, w1, h1) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:i]:
            assert x1 >= x2 + w2 or x2 >= x1 + w1 or y1 >= y2 + h2 or y2 >= y1 + h1
    _, _, width, height = map(float, root.get("viewBox").split())
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    assert drawing.dot.count("label=") == len(drawing.vertices) and drawing.dot.count("->") == len(drawing.edges)
    assert root.get("role") == "img" and root.find(f"{name}title").text == drawing.title


def test_names_are_escaped():
    drawing = Drawing('a "b" <c>', [Vertex(("<script>", 'a"b'), "op")], [])
    xml.fromstring(drawing.svg)
    assert "<script>" not in drawing.svg and 'a\\"b' in drawing.dot


def test_dark_text_is_legible_on_every_fill():
    """Contrast of at least 7 to 1 (WCAG 2.1, level AAA)."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert all((luminance(fill) + 0.05) / (luminance("#222222") + 0.05) >= 7 for fill in FILLS.values())


def test_files_end_in_svg_or_dot(tmp_path):
    drawing = sn.draw(sn.Tensor([1.0], requires_grad=True) * 2)
    for ending, text in (("svg", drawing.svg), ("dot", drawing.dot)):
        drawing.save(tmp_path / f"graph.{ending}")
        assert (tmp_path / f"graph.{ending}").read_text() == text
    assert "ends in .svg or .dot" in refused(ConfigError, lambda: drawing.save(tmp_path / "graph.png"))
    assert "no such file" in refused(ConfigError, lambda: drawing.save(tmp_path / "no" / "graph.svg")).lower()


def test_what_has_no_graph_is_refused():
    x = sn.Tensor([1.0], requires_grad=True)
    assert "no record" in refused(GradientError, lambda: sn.draw(x))
    y = x * 2
    y.backward()
    assert "backward freed it" in refused(GradientError, lambda: sn.draw(y))
    half = x * 2
    other = half * 3
    half.backward()
    assert "backward freed it" in refused(GradientError, lambda: sn.draw(other))
    for _ in range(1000):
        x = x + 1
    assert "at most 1,000 vertices, got 2,001" in refused(ConfigError, lambda: sn.draw(x))
