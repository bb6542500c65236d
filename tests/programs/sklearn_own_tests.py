"""scikit-learn's own tests of its perceptrons, with ours in their place. Prints what failed; arguments go to pytest."""

import sys

import pytest
import sklearn.neural_network

from scratchnet.sklearn import MLPClassifier, MLPRegressor

sklearn.neural_network.MLPClassifier, sklearn.neural_network.MLPRegressor = MLPClassifier, MLPRegressor
sys.exit(pytest.main(["--pyargs", "sklearn.neural_network.tests.test_mlp", "-p", "no:cacheprovider", *sys.argv[1:]]))
