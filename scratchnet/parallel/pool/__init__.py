"""Training by processes of one machine."""
