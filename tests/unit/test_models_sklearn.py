"""scikit-learn estimators through skops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from kpaas_lab import models
from kpaas_lab.errors import ModelError
from kpaas_lab.oip import TensorSpec


class OwnClassifier(ClassifierMixin, BaseEstimator):
    def fit(self, X: Any, y: Any) -> OwnClassifier:
        self.classes_, self.n_features_in_ = np.unique(y), X.shape[1]
        return self

    def predict(self, X: Any) -> Any:
        return np.zeros(len(X), dtype=int)


def test_digits(tmp_path: Path) -> None:
    X, y = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=50)).fit(X[:500], y[:500])
    manifest = models.save(model, tmp_path / "model")
    assert manifest.inputs == (TensorSpec("x", "FP64", (-1, 64)),)
    assert manifest.outputs == (
        TensorSpec("predict", "INT64", (-1,)),
        TensorSpec("predict_proba", "FP64", (-1, 10)),
    )
    assert manifest.batched
    out = models.load(tmp_path / "model", threads=1).predict({"x": X[500:520]})
    assert np.array_equal(out["predict"], model.predict(X[500:520]))
    assert np.allclose(out["predict_proba"], model.predict_proba(X[500:520]))


def test_regression_clusters_and_text_labels(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(20, 3))
    models.save(LinearRegression().fit(X, X[:, 0]), tmp_path / "regression")
    assert [o.name for o in models.load(tmp_path / "regression").manifest.outputs] == ["predict"]
    models.save(KMeans(2, n_init=1, random_state=0).fit(X), tmp_path / "clusters")
    labels = np.where(X[:, 0] > 0, "위", "down")
    models.save(LogisticRegression().fit(X, labels), tmp_path / "labels", example=X[:3])
    predictor = models.load(tmp_path / "labels")
    assert predictor.manifest.outputs[0] == TensorSpec("predict", "BYTES", (-1,), text=True)
    assert set(predictor.predict({"x": X})["predict"].tolist()) == {"위", "down"}


def test_texts_and_data_frames(tmp_path: Path) -> None:
    import pandas as pd

    texts = ["good film", "bad film", "very good", "so bad"]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0])
    with pytest.raises(ModelError, match="how many features"):
        models.save(model, tmp_path / "texts")
    models.save(model, tmp_path / "texts", example=texts[:2])
    out = models.load(tmp_path / "texts").predict({"x": np.array([b"good", b"bad"], dtype=object)})
    assert out["predict"].tolist() == [1, 0]

    frame = pd.DataFrame({"city": ["Seoul", "Busan", "Seoul"], "size": [1.0, 2.0, 3.0]})
    columns = ColumnTransformer([("city", OneHotEncoder(), ["city"]), ("size", StandardScaler(), ["size"])])
    frames = make_pipeline(columns, LinearRegression()).fit(frame, [1, 2, 3])
    manifest = models.save(frames, tmp_path / "frame", example=frame)
    assert [(spec.name, spec.datatype) for spec in manifest.inputs] == [("city", "BYTES"), ("size", "FP64")]
    out = models.load(tmp_path / "frame").predict({"city": np.array([b"Busan"], dtype=object), "size": np.array([2.0])})
    assert np.allclose(out["predict"], frames.predict(frame[1:2]))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (OwnClassifier().fit(np.zeros((4, 2)), [0, 1, 0, 1]), "OwnClassifier"),
        (make_pipeline(FunctionTransformer(np.vectorize(print))).fit(np.zeros((2, 2))), "aren't known to be safe"),
        (LogisticRegression(), "isn't trained yet"),
    ],
)
def test_what_isnt_safe_or_trained_is_refused_by_name(tmp_path: Path, model: Any, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        models.save(model, tmp_path / "model", example=np.zeros((2, 2)))
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_with_an_unsafe_type_isnt_built(tmp_path: Path) -> None:
    import hashlib

    import skops.io

    models.save(LinearRegression().fit(np.zeros((2, 2)), [0, 1]), tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*.skops")
    data = skops.io.dumps(OwnClassifier().fit(np.zeros((4, 2)), [0, 1, 0, 1]))
    manifest = (tmp_path / "model" / "model.json").read_text()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "model" / "model.json").write_text(manifest.replace(digest, hashlib.sha256(data).hexdigest()))
    file.write_bytes(data)
    with pytest.raises(ModelError, match="OwnClassifier"):
        models.load(tmp_path / "model")


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(),
        RandomForestClassifier(5),
        GradientBoostingClassifier(n_estimators=3),
        HistGradientBoostingClassifier(max_iter=3),
        BaggingClassifier(n_estimators=3, max_features=2),
        KNeighborsClassifier(),
        MLPClassifier(max_iter=5),
        GaussianProcessClassifier(),
        CalibratedClassifierCV(LogisticRegression()),
        make_pipeline(OneHotEncoder(handle_unknown="ignore"), RandomForestClassifier(3)),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_what_learners_use_is_served_as_it_is(tmp_path: Path, estimator: Any) -> None:
    X, y = load_iris(return_X_y=True)
    estimator.fit(X, y)
    models.save(estimator, tmp_path / "model", example=X[:3])
    out = models.load(tmp_path / "model", threads=1).predict({"x": X})
    assert np.array_equal(out["predict"], estimator.predict(X))


def _bend(tree: Any, field: str, value: int) -> None:
    state = tree.__getstate__()
    nodes = state["nodes"].copy()
    nodes[field][0] = value
    tree.__setstate__({**state, "nodes": nodes})


@pytest.mark.parametrize(
    ("field", "value"),
    [("left_child", 10**6), ("right_child", -5), ("left_child", 0), ("feature", 10**6), ("feature", -7)],
)
def test_a_tree_that_points_outside_of_itself_is_refused(tmp_path: Path, field: str, value: int) -> None:
    X, y = load_iris(return_X_y=True)
    forest = RandomForestClassifier(3, random_state=0).fit(X, y)
    _bend(forest.estimators_[1].tree_, field, value)
    with pytest.raises(ModelError, match="points outside of itself"):
        models.save(make_pipeline(StandardScaler().fit(X), forest), tmp_path / "model", example=X[:2])
    boosted = HistGradientBoostingClassifier(max_iter=2).fit(X, y)
    nodes = boosted._predictors[0][0].nodes
    names = {"left_child": "left", "right_child": "right", "feature": "feature_idx"}
    nodes[names[field]][0] = value % 2**31 if field == "feature" else abs(value)
    if (field, value) != ("right_child", -5):  # five is a node that is there
        with pytest.raises(ModelError, match="points outside of itself"):
            models.save(boosted, tmp_path / "model", example=X[:2])


def test_a_tree_of_more_features_than_its_forest_takes_is_refused(tmp_path: Path) -> None:
    X, y = load_iris(return_X_y=True)
    forest = RandomForestClassifier(3, random_state=0).fit(X, y)
    forest.n_features_in_ = 1
    with pytest.raises(ModelError, match="points outside of itself"):
        models.save(forest, tmp_path / "model", example=X[:2, :1])


def test_neighbours_that_are_not_there_are_refused(tmp_path: Path) -> None:
    X, y = load_iris(return_X_y=True)
    for place, change in (
        (1, lambda indices: indices + 10**6),
        (6, lambda count: count * 1000),
        (5, lambda levels: levels + 9),
    ):
        model = KNeighborsClassifier(algorithm="kd_tree").fit(X, y)
        state = list(model._tree.__getstate__())
        state[place] = change(state[place])
        model._tree.__setstate__(tuple(state))
        with pytest.raises(ModelError, match="points outside of itself"):
            models.save(model, tmp_path / "model", example=X[:2])
