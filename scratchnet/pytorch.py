"""Weights of PyTorch models: `load_state_dict(model, path_or_dict)` takes them, `state_dict(model)` gives them back."""

from .formats.pytorch import load_state_dict, state_dict

__all__ = ["load_state_dict", "state_dict"]
