"""An encoder as a step of a scikit-learn pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from tinyssl.errors import UsageError
from tinyssl.model import load
from tinyssl.weights import read_description


class EmbeddingTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Pictures to features, by the encoder of a run folder.

    It takes the same input as `Model.embed`: paths, Pillow images, arrays, or one array
    (n, h, w, c). Fitting only checks that the run exists.

    Args:
        run: the run folder.
        device: auto, cpu, cuda or cuda:N.
        batch_size: pictures at a time.
        raw: return features unscaled; else each has length 1.

    Attributes:
        n_features_out_: width of the features, once fitted.
    """

    def __init__(
        self,
        run: str | Path | None = None,
        device: str = "auto",
        batch_size: int = 256,
        raw: bool = False,
    ) -> None:
        self.run = run
        self.device = device
        self.batch_size = batch_size
        self.raw = raw

    def fit(self, X: Any, y: Any = None) -> EmbeddingTransformer:
        """Checks that there is an encoder; raises UsageError when there is none."""
        if self.run is None:
            raise UsageError("EmbeddingTransformer has no run; give EmbeddingTransformer(run=DIR)")
        self.n_features_out_ = int(read_description(self.run)["width"])
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Pictures to (n, width) float32 features; raises UsageError for an unreadable one."""
        check_is_fitted(self)
        model = load(self.run or "", self.device)
        return model.embed(X, batch_size=self.batch_size, raw=self.raw)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """`feature0`, `feature1`, ...: one name per column."""
        check_is_fitted(self)
        return np.array([f"feature{i}" for i in range(self.n_features_out_)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.requires_fit = True
        tags.no_validation = True
        tags.transformer_tags.preserves_dtype = []
        return tags
