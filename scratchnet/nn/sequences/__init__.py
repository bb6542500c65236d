"""Layers of sequences: functions in functions.py, layers in the files named after them."""
