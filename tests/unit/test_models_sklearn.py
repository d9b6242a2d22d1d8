"""scikit-learn estimators through skops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

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
