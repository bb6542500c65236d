"""The reference of the site: everything public is in it, and documented; docstrings become Markdown."""

import doctest
import importlib
import sys

import pages
import pytest

from tests.test_errors import PUBLIC

sys.path.append(str(pages.ROOT / "docs"))
import reference

MODULES = {
    "F": "scratchnet.nn.functional",
    "init": "scratchnet.nn.init",
    "lr_scheduler": "scratchnet.optim.lr_scheduler",
    "sn": "scratchnet",
    "utils": "scratchnet.nn.utils",
}


def test_everything_public_is_documented():
    assert reference.undocumented() == []


def test_everything_public_is_in_the_reference():
    written = {module: reference.page(module) for module in reference.spaces()}
    missing = []
    for called in PUBLIC:
        space, name, *method = called.split(".")
        module = MODULES.get(space, f"scratchnet.{space}")
        if method and not reference.CALLED_BY_A_RUN.match(method[0]):
            missing += [called] * (f"{{py:method}} {method[0]}(" not in written[module])
        elif not method:
            missing += [called] * (f"}} {module}.{name}(" not in written[module])
    assert missing == []


@pytest.mark.parametrize("module", ["scratchnet.nn.module"])
def test_the_examples_of_docstrings_run(module):
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted and not done.failed


def test_a_module_without_a_title_has_its_own_first_words(monkeypatch):
    monkeypatch.delitem(reference.TITLES, "scratchnet.metrics")
    assert len(reference.spaces()["scratchnet.metrics"]) > 5


def test_a_docstring_becomes_markdown():
    doc = "Adds x_1 * y.\n\nx: `a_b` of <n>,\n    continued.\ny: more.\n\n    s = x + y\n\n>>> 1 + 1\n2"
    assert reference.markdown(doc) == (
        "Adds x\\_1 \\* y.\n\n- **x**: `a_b` of \\<n\\>,\n  continued.\n- **y**: more.\n\n"
        "```text\ns = x + y\n```\n\n```text\n>>> 1 + 1\n2\n```"
    )


def test_a_signature_has_names_and_defaults_alone():
    def function(self, x: int, *rest, y=(1, "a"), z=object()) -> None: ...  # noqa: B008

    assert reference.signature(function) == "(x, *rest, y=(1, 'a'), z=...)"


def test_what_is_not_documented_is_found(monkeypatch):
    import scratchnet as sn

    monkeypatch.setattr(sn.metrics, "nameless", lambda x: x, raising=False)
    monkeypatch.setattr(sn.metrics.nameless, "__module__", "scratchnet.metrics")
    assert reference.undocumented() == ["scratchnet.metrics.nameless"]
