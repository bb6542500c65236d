"""scikit-learn's multi-layer perceptrons, computed by this engine: `from scratchnet.sklearn import MLPClassifier`.

Parameters, their checks, labels, scores, warnings and fitted attributes are scikit-learn's own: the estimators inherit
from its classes. What they replace is the arithmetic: the forward pass, the gradient, and the loop over batches, whose
steps `sn.jit` records. Initial weights, batches, losses, penalties and updates are scikit-learn's, up to rounding.
"""

from ..errors import ConfigError

try:
    from .estimators import MLPClassifier, MLPRegressor
except ImportError as error:
    if (error.name or "").partition(".")[0] == "scratchnet":
        raise
    raise ConfigError(
        f"scratchnet.sklearn: expected scikit-learn 1.7 or newer, got: {str(error).splitlines()[0]}; "
        "pip install 'scikit-learn>=1.7'"
    ) from None

__all__ = ["MLPClassifier", "MLPRegressor"]
