"""Models in and out of ONNX files."""

from .graph import Graph
from .read import load
from .write import export

__all__ = ["Graph", "export", "load"]
