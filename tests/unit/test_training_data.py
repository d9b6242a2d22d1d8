"""The data sets in the package."""

from __future__ import annotations

import numpy as np

from kpaas_lab.datasets import load


def test_digits() -> None:
    data, again = load("kpaas/digits"), load("kpaas/digits")
    for split, size in ((data.train, 1437), (data.test, 360)):
        assert (split.images.shape, split.images.dtype) == ((size, 1, 8, 8), np.float32)
        assert (split.labels.shape, split.labels.dtype) == ((size,), np.int64)
        assert (split.images.min(), split.images.max()) == (0.0, 1.0)
        assert set(split.labels) == set(range(10))
    assert (data.train.images == again.train.images).all()
    seen = {image.tobytes() for image in data.train.images}
    assert not any(image.tobytes() in seen for image in data.test.images)
    assert len(data.classes) == 10
    assert repr(data) == "Dataset('kpaas/digits', 1437 to train, 360 to test, images of (1, 8, 8))"
