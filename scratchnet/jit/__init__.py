"""`jit`: a training step is recorded in its first call and replayed, without Python, in all later ones.

record (trace.py) -> instructions, without what nobody reads (passes.py) -> loops over the same rows fused, in stages
(fuse.py) -> one compiled call (program.py, native/execute.py).
"""

from .step import Step, jit

__all__ = ["Step", "jit"]
