"""Nets of Caffe: `load(prototxt, caffemodel)` makes a module of one that trains.

Needs the package protobuf, `pip install protobuf`; it is imported when a net is read.
"""

from .formats.caffe import load

__all__ = ["load"]
