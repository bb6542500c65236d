"""What a notebook shows of a module."""

from xml.etree import ElementTree

import scratchnet as sn
from scratchnet import nn


def rows_of(module):
    table = ElementTree.fromstring(module._repr_html_())
    return [[cell.text or "" for cell in row] for row in table.iter("tr")]


def test_a_row_for_each_layer_and_a_sum():
    assert rows_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))) == [
        ["name", "layer", "shapes", "parameters"],
        ["0", "Linear(in_features=3, out_features=4, bias=True)", "(3, 4), (4,)", "16"],
        ["1", "ReLU()", "", "0"],
        ["2", "Linear(in_features=4, out_features=2, bias=False)", "(4, 2)", "8"],
        ["", "all", "", "24"],
    ]


def test_parameters_beside_layers_have_a_row_and_shared_ones_count_once():
    class Scaled(nn.Module):
        def __init__(self):
            self.scale = nn.Parameter(sn.ones(2))
            self.first = nn.Linear(2, 2)
            self.again = nn.Linear(2, 2)
            self.again.weight = self.first.weight

        def extra_repr(self):
            return "a < b & c"

    assert [(row[0], row[3]) for row in rows_of(Scaled())[1:]] == [
        ("", "2"), ("first", "6"), ("again", "2"), ("", "10"),
    ]  # fmt: skip
    assert rows_of(Scaled())[1][1] == "Scaled(a < b & c)"


def test_a_module_without_layers_has_one_row():
    assert rows_of(nn.ReLU())[1:] == [["", "ReLU()", "", "0"], ["", "all", "", "0"]]
