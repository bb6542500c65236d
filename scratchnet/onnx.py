"""ONNX files: `export(model, path, example)` writes one, `load(path)` makes a module of one that trains.

Needs the package onnx, `pip install onnx`; it is imported when a file is written or read.
"""

from .formats.onnx import export, load

__all__ = ["export", "load"]
