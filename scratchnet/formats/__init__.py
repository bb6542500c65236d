"""Files that models and runs are kept in."""
