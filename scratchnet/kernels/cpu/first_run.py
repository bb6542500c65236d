"""The kernels that a first run of scripts/train.py calls: native/ahead.py has them compiled on two cores.

Products come first, then the others, both in the order of their calls. Printed by the second of two runs of
`python tests/programs/first_run.py FOLDER`; a test compares.
"""

FIRST_RUN = """\
scratchnet.kernels.cpu.gemm._direct: f2 f2 f2 f2 ? ? ? f1
scratchnet.kernels.cpu.gemm.matmul: l l f2 f2 f2 f2 ? ? ? f2
scratchnet.kernels.cpu.gemm.matmul_columns: l l f2 f2 f2 f2 ? ? f2
scratchnet.kernels.cpu.gemm_update.matmul_sgd_columns: l l f2 f2 f2 f2 f2 l d1 f2
scratchnet.kernels.cpu.gemm_pack.pack: l l f2 ? l f2 ?
scratchnet.kernels.cpu.gemm.matmul_packed: l l f2 f2 f2 f2 ? l ? f2
scratchnet.data.rows.take_scaled_bytes: B2 l1 f f2
scratchnet.kernels.cpu.movement.take_rows: l l l2 l1 l2
scratchnet.kernels.cpu.movement.take_rows: l l B2 l1 B2
scratchnet.kernels.cpu.elementwise.mul: l l f1 f1 f1 l1
scratchnet.kernels.cpu.elementwise.sub: l l f1 f1 f1 l1
scratchnet.kernels.cpu.elementwise.div: l l f1 f1 f1 l1
scratchnet.native.loops._pack: l l (f1 f1 f1 l1)
scratchnet.native.loops.over_blocks: l l l l
scratchnet.native.loops._pack: l l (f2 f2 f2 f2 ? ? ? f2)
scratchnet.kernels.cpu.elementwise.relu: l l f1 f1
scratchnet.kernels.cpu.softmax.cross_entropy: l l f2 l1 f1 d2
scratchnet.kernels.cpu.reduce.sum: l l f1 f1 l l
scratchnet.kernels.cpu.softmax.cross_entropy_grad: l l f1 f2 l1 f2 d2
scratchnet.kernels.cpu.reduce.sum_strided: l l f1 f1 l l l
scratchnet.kernels.cpu.elementwise.relu_grad: l l f1 f1 f1 l1
scratchnet.kernels.cpu.optim.sgd_in_place: l l f1 f1 f1 d1
scratchnet.native.loops._pack: l l (f1 f1 f1 d1)
scratchnet.native.loops._pack: l l (l2 l1 l2)
scratchnet.native.loops._pack: l l (B2 l1 B2)
scratchnet.kernels.cpu.movement.copy: l l B1 f1
scratchnet.native.loops._pack: l l (B1 f1)
scratchnet.kernels.cpu.guards.in_range: l l l1 l l l1
scratchnet.native.loops._pack: l l (l1 l l l1)
scratchnet.kernels.cpu.movement.repeat: l l f1 f1
scratchnet.native.loops._pack: l l (f1 f1)
scratchnet.native.loops._pack: l l (f2 f2 f2 f2 ? ? f2)
scratchnet.native.loops._pack: l l (f2 l1 f1 d2)
scratchnet.native.loops._pack: l l (f1 f2 l1 f2 d2)
scratchnet.native.loops._pack: l l (f1 f1 l l l)
scratchnet.native.loops._pack: l l (f1 f1 l l)
scratchnet.kernels.cpu.guards.finite: l l f1 l1
scratchnet.native.loops._pack: l l (f1 l1)
scratchnet.native.loops._pack: l l (f2 f2 f2 f2 f2 l d1 f2)
scratchnet.native.execute.program: l l (l2 l1 l1 l1 l2 l2) (l2 l2 l2 l2 l1)
scratchnet.native.loops._pack: l l ((l2 l1 l1 l1 l2 l2) (l2 l2 l2 l2 l1))
scratchnet.native.execute._call: l l l l
scratchnet.native.loops._pack: l l (f2 f2 f2 f2 ? l ? f2)
""".splitlines()
