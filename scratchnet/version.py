"""The version of this package, which checkpoints name, too."""

__version__ = "0.2.0"
