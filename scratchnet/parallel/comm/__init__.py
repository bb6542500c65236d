"""Collectives between processes, and the memory that they share."""
