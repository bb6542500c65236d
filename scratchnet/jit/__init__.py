"""`jit`: a training step is recorded in its first call and replayed, without Python, in all later ones.

record (tracing.py) -> drop what nobody reads, fuse loops over the same rows, order the rest in stages (fuse.py) -> run
it all as one compiled call (program.py, native/execute.py).
"""

from .step import Step, jit

__all__ = ["Step", "jit"]
