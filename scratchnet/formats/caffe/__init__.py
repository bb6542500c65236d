"""Nets of Caffe: a prototxt and a caffemodel become a module that trains."""

from .net import load

__all__ = ["load"]
