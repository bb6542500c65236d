"""Stage k runs stages - k forward passes ahead: so long does the first micro-batch take to come back to it."""


def schedule(stages, microbatches):
    plans = []
    for k in range(stages):
        ahead = min(stages - k, microbatches)
        plan = [("F", m) for m in range(ahead)]
        for m in range(microbatches):
            plan.append(("B", m))
            if ahead + m < microbatches:
                plan.append(("F", ahead + m))
        plans.append(plan)
    return plans
