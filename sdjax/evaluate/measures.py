"""The table of measures: which features of which network each takes, and what it computes from them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sdjax.evaluate import distances

Features = Mapping[str, Float[np.ndarray, "n d"]]  # of one set of pictures, one row a picture
Statistics = tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]  # mean and covariance


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of a set of pictures.

    `extractor` names the network (`sdjax.evaluate.extractors.EXTRACTORS`), `features` what is taken of its output.
    `function` computes the value in float64 from the pictures' features and the reference's, with any number of rows,
    so that rows can be drawn again for confidence. `prepared` and `of_statistics` return the function for a reference's
    features, and for its mean and covariance: None if nothing can be done beforehand, and if statistics are not enough.
    `bounds` are the least and the largest value that it can have. `counts` says that it is a share of pictures of which
    each is right or wrong by itself, and `of_pairs` that it is an estimate from pairs of different pictures.
    All raise ValueError for features that cannot be measured.
    """

    name: str
    title: str
    extractor: str
    features: tuple[str, ...]
    needs_reference: bool
    lower_is_better: bool
    function: Callable[[Features, Features | None], float]
    prepared: Callable[[Features], Callable[[Features], float]] | None = None
    of_statistics: Callable[[Statistics], Callable[[Features], float]] | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    counts: bool = False
    of_pairs: bool = False

    def against(self, reference: Features | None) -> Callable[[Features], float]:
        """Returns the value as a function of the pictures' features. What only the reference needs is done once."""
        if reference is not None and self.prepared is not None:
            return self.prepared(reference)
        return lambda features: self.function(features, reference)


def frechet_measure(name: str, title: str, extractor: str, feature: str) -> Measure:
    """Returns the measure that is the Fréchet distance of a feature."""

    def of(distance: Callable[..., float]) -> Callable[[Features], float]:
        return lambda features: distance(features[feature])

    return Measure(
        name, title, extractor, (feature,), True, True, _compared(distances.frechet, feature),
        lambda reference: of(distances.frechet_to(reference[feature])),
        lambda statistics: of(distances.frechet_to_statistics(*statistics)), bounds=(0, None),
    )  # fmt: skip


def _compared(distance: Callable[..., float], feature: str) -> Callable[[Features, Features | None], float]:
    def function(features: Features, reference: Features | None) -> float:
        if reference is None:
            raise ValueError("this measure compares with reference pictures; there are none")
        return distance(features[feature], reference[feature])

    return function


def _alone(score: Callable[..., float], *names: str) -> Callable[[Features, Features | None], float]:
    return lambda features, reference: score(*(features[name] for name in names))


def _comparison(
    name: str,
    title: str,
    extractor: str,
    feature: str,
    distance: Callable[..., float],
    *,
    lower: bool = True,
    **more: Any,
) -> Measure:
    return Measure(name, title, extractor, (feature,), True, lower, _compared(distance, feature), **more)


def _score(
    name: str, title: str, extractor: str, features: tuple[str, ...], score: Callable[..., float], **more: Any
) -> Measure:
    return Measure(name, title, extractor, features, False, False, _alone(score, *features), **more)


_PAIR, _SHARE = ("image", "text"), (0, 1)
MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        frechet_measure("fid", "FID", "inception", "pool"),
        frechet_measure("fid-tensorflow", "FID (TensorFlow)", "inception-tensorflow", "pool"),
        frechet_measure("fid-clean", "FID (clean)", "inception-clean", "pool"),
        _comparison("kid", "KID", "inception", "pool", distances.kernel_distance, of_pairs=True),
        _comparison("kid-clean", "KID (clean)", "inception-clean", "pool", distances.kernel_distance, of_pairs=True),
        frechet_measure("fd-dinov2", "FD-DINOv2", "dinov2", "class"),
        _comparison("cmmd", "CMMD", "clip-l14-336", "image", distances.cmmd, bounds=(0, None)),
        _score("clip-score", "CLIP score (ViT-L/14)", "clip-l14", _PAIR, distances.clip_score),
        _score("clip-s", "CLIP-S (ViT-L/14)", "clip-l14", _PAIR, distances.clip_s, bounds=(0, 2.5)),
        _score("openclip-score", "CLIP score (OpenCLIP ViT-H/14)", "openclip-h14", _PAIR, distances.clip_score),
        _score("openclip-s", "CLIP-S (OpenCLIP ViT-H/14)", "openclip-h14", _PAIR, distances.clip_s, bounds=(0, 2.5)),
        _comparison(
            "precision", "Precision", "inception", "pool", distances.precision, lower=False, bounds=_SHARE, counts=True
        ),
        _comparison("recall", "Recall", "inception", "pool", distances.recall, lower=False, bounds=_SHARE),
        _score("is", "Inception score", "inception", ("logits",), distances.inception_score, bounds=(1, None)),
        _score("aesthetic", "Aesthetic score", "aesthetic", ("score",), distances.mean_score),
        _score("pickscore", "PickScore", "pickscore", ("score",), distances.mean_score),
    )
}
