"""Tables larger than memory: stored once as rows of numbers, then mapped, so that a rank reads what it computes on."""
