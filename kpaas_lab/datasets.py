"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kpaas_lab.errors import NotFoundError, SettingsError
from kpaas_lab.i18n import N_, _

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Split:
    """A part of a data set.

    Attributes:
        images: float32 of shape (n, channels, height, width), 0 to 1.
        labels: int64 of shape (n,).
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set with its splits.

    Attributes:
        name: "publisher/name".
        description: in a sentence.
        classes: what the labels 0, 1, ... mean.
        train: to learn from.
        test: held out, to measure with.
    """

    name: str
    description: str
    classes: tuple[str, ...]
    train: Split
    test: Split

    @property
    def example(self) -> Any:
        """Two inputs, as a model of this data takes them."""
        return self.test.images[:2]

    def __repr__(self) -> str:
        words = _("{train} to train, {test} to test, images of {shape}").format(
            train=len(self.train), test=len(self.test), shape=self.train.images.shape[1:]
        )
        return f"Dataset({self.name!r}, {words})"


def _digits() -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels (UCI "Optical Recognition of Handwritten Digits", in scikit-learn)."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))  # the order in the file goes by writer
    cut = len(order) * 4 // 5
    splits = [Split(images[part], labels[part]) for part in (order[:cut], order[cut:])]
    description = _("Handwritten digits, 8 x 8 pixels")
    return Dataset("kpaas/digits", description, tuple("0123456789"), *splits)


_LOADERS: dict[str, tuple[str, Callable[[], Dataset]]] = {
    "kpaas/digits": (N_("Handwritten digits, 8 x 8 pixels"), _digits),
}


def names() -> list[str]:
    """The data sets there are.

    Example:
        >>> names()
        ['kpaas/digits']
    """
    return sorted(_LOADERS)


def check(name: str) -> str:
    """The name, if there is such a data set.

    Raises:
        SettingsError: not a name.
        NotFoundError: with the names there are.
    """
    if not isinstance(name, str):
        raise SettingsError(
            _("data is a {kind}, not the name of a data set.").format(kind=type(name).__name__),
            hint=_("Data sets: {names}. Load other data inside the function.").format(names=", ".join(names())),
        )
    if name not in _LOADERS:
        raise NotFoundError(
            _("No data set {name!r}.").format(name=name[:100]),
            hint=_("Data sets: {names}.").format(names=", ".join(names())),
        )
    return name


def load(name: str) -> Dataset:
    """A data set, the same each time.

    Args:
        name: one of `names()`.

    Raises:
        NotFoundError: with the names there are.

    Example:
        >>> data = load("kpaas/digits")
        >>> data.train.images.shape, data.test.labels.shape
        ((1437, 1, 8, 8), (360,))
    """
    return _LOADERS[check(name)][1]()
