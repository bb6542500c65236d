"""A model that is divided among workers: into stages of a pipeline, and by parts of its layers."""
