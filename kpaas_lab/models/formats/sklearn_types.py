"""scikit-learn's own types that skops leaves to the reader's judgement, and the checks under which they are read.

skops distrusts trees because their node indices are followed without bounds (skops pull request 535): a crafted file
could make `predict` read outside of its memory. So every tree that was read is checked before anything is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kpaas_lab.errors import ModelError
from kpaas_lab.i18n import _

_KERNELS = (
    *("ConstantKernel", "DotProduct", "ExpSineSquared", "Exponentiation", "Matern", "Product", "RBF"),
    *("RationalQuadratic", "Sum", "WhiteKernel"),
)
_SCORES = ("chi2", "f_classif", "f_regression")
_DISTANCES = ("Chebyshev", "Euclidean", "Manhattan", "Minkowski")

# These call trees without checking the rows again, so their number of features is the trees' limit.
_CALL_TREES = (
    *("sklearn.ensemble._forest", "sklearn.ensemble._gb", "sklearn.ensemble._hist_gradient_boosting"),
    *("sklearn.ensemble._iforest", "sklearn.neighbors.", "sklearn.tree."),
)

TRUSTED = frozenset(
    {
        "numpy.dtype",
        "numpy.mean",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.cluster._bisect_k_means._BisectingTree",
        "sklearn.cluster._kmeans._kmeans_single_lloyd",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        *(
            f"sklearn.gaussian_process.kernels.{name}"
            for name in (*_KERNELS, "RationalQuadratic", "Sum", "WhiteKernel")
        ),
        *(f"sklearn.feature_selection._univariate_selection.{name}" for name in _SCORES),
        *(f"sklearn.metrics._dist_metrics.{name}Distance64" for name in _DISTANCES),
    }
)


def check_trees(estimator: Any) -> None:
    """Refuse trees whose indices lead out of them, or back: after this, predicting stays within its memory and ends.

    Raises:
        ModelError: a tree was tampered with.
    """
    for tree, features in _trees(estimator, None, set()):
        check = _CHECKS[type(tree).__name__]
        if not check(tree, features):
            raise ModelError(
                _("A tree of the estimator points outside of itself; it is not used."),
                hint=_("The file was made to do harm, or is damaged. Save the estimator again."),
            )


def _trees(value: Any, features: int | None, seen: set[int]) -> Iterator[tuple[Any, int | None]]:
    """Every tree in an estimator, with the number of features that those who call it promise."""
    if id(value) in seen or isinstance(value, str | bytes | int | float | type(None)):
        return
    seen.add(id(value))
    if type(value).__name__ in _CHECKS:
        yield value, features
    elif isinstance(value, dict):
        for item in value.values():
            yield from _trees(item, features, seen)
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        for item in value.ravel() if isinstance(value, np.ndarray) else value:
            yield from _trees(item, features, seen)
    elif hasattr(value, "__dict__"):
        passed = None
        if type(value).__module__.startswith(_CALL_TREES):
            passed = getattr(value, "n_features_in_", None)
            passed = features if passed is None else passed if features is None else min(passed, features)
        for item in vars(value).values():
            yield from _trees(item, passed, seen)


def _descends(left: Any, right: Any, inner: Any) -> bool:
    """Children come after their parent and exist, so a walk ends and never leaves."""
    parents = np.flatnonzero(inner)
    count = len(left)
    return all(
        bool((children[inner] > parents).all() and (children[inner] < count).all()) for children in (left, right)
    )


def _check_tree(tree: Any, features: int | None) -> bool:
    if not 0 < tree.node_count <= tree.capacity:
        return False
    left, right = tree.children_left.astype(np.int64), tree.children_right.astype(np.int64)
    inner = left != -1
    limit = tree.n_features if features is None else min(tree.n_features, features)
    used = tree.feature[inner]
    return _descends(left, right, inner) and bool(((used >= 0) & (used < limit)).all())


def _check_predictor(tree: Any, features: int | None) -> bool:
    nodes = tree.nodes
    inner = nodes["is_leaf"] == 0
    left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
    used = nodes["feature_idx"][inner]
    categories = nodes["bitset_idx"][inner & (nodes["is_categorical"] != 0)]
    sets = min(len(tree.raw_left_cat_bitsets), len(tree.binned_left_cat_bitsets))
    return (
        len(nodes) > 0
        and features is not None
        and _descends(left, right, inner)
        and bool(((used >= 0) & (used < features)).all() and (categories < sets).all())
    )


def _check_neighbours(tree: Any, features: int | None) -> bool:
    """A ball tree or k-d tree is complete: node i has the children 2i + 1 and 2i + 2 (scikit-learn, BinaryTree)."""
    data, indices, nodes, bounds = (np.asarray(array) for array in tree.__getstate__()[:4])
    levels, count = tree.__getstate__()[5:7]
    rows, columns = data.shape
    start, end = nodes["idx_start"], nodes["idx_end"]
    return (
        0 < levels < 40
        and count == 2**levels - 1 == len(nodes) == bounds.shape[1]
        and bounds.shape[2] == columns
        and (features is None or columns == features)
        and indices.shape == (rows,)
        and bool(((indices >= 0) & (indices < rows)).all())
        and bool(((start >= 0) & (start <= end) & (end <= rows)).all())
        # Where the last level begins every node must be a leaf: the walk goes no deeper.
        and bool((nodes["is_leaf"][count // 2 :] != 0).all())
    )


_CHECKS = {
    "Tree": _check_tree,
    "TreePredictor": _check_predictor,
    "KDTree": _check_neighbours,
    "BallTree": _check_neighbours,
}
