"""Recurrent operators of ONNX; see operators.py."""
