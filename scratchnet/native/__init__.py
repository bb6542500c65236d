"""How Python becomes machine code: compile, cache, loops, atomics, vectors. It knows no kernel."""
