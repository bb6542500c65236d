"""Training by the ranks of an MPI job."""
