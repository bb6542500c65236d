"""A model that is divided among workers: by parts of its layers."""
