"""Exercise 10: the schedule of a pipeline.

A network is cut into stages, one on each worker. A batch is cut into micro-batches. Each of them goes forward through
all stages, then backward through all of them. Between its forward and its backward pass a stage has to keep what the
micro-batch left there. In the schedule 1F1B ("one forward, one backward") stage k first does stages - k forward passes
(or all, if there are fewer), then one backward and one forward pass in turn, and the backward passes that are left.
So it never keeps more than stages - k micro-batches.
"""


def schedule(stages, microbatches):
    """For each stage the list of its work, in order: ("F", m) is the forward pass of micro-batch m, ("B", m) the other.

    So schedule(1, 2) is [[("F", 0), ("B", 0), ("F", 1), ("B", 1)]].
    """
    raise NotImplementedError  # your lines
