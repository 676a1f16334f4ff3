"""Measures of pictures from the features of networks: distances between two sets, and scores of one.

All take and compute float64 [n, d], one row a picture. They raise ValueError for too few rows and for values that are
not finite.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

Rows = Float[np.ndarray, "n d"]
OtherRows = Float[np.ndarray, "m d"]
Mean = Float[np.ndarray, "d"]
Covariance = Float[np.ndarray, "d d"]
Factor = Float[np.ndarray, "r d"]

KID_SUBSETS, KID_SIZE, KID_SEED = 100, 1000, 0
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
NEIGHBOURS = 3
IS_SPLITS = 10
EXACT = 1024  # rows or columns of a matrix up to which the Fréchet distance takes singular values
_BLOCK = 1024  # rows of a matrix of all pairs that are in memory at a time


def frechet(rows: Rows, reference: OtherRows) -> float:
    """Returns the Fréchet distance between the normal distributions of two sets, |m1 - m2|^2 + tr(C1 + C2 - 2 root).

    The root is that of C1 C2. The covariances have n - 1 in the denominator. Source: Heusel et al. 2017 (arXiv
    1706.08500), equation 6; pytorch-fid, fid_score.py.
    """
    return frechet_to(reference)(rows)


def frechet_to(reference: OtherRows) -> Callable[[Rows], float]:
    """Returns the Fréchet distance to a reference as a function, which does the reference's part once."""
    return functools.partial(_frechet, *_normal(reference))


def frechet_to_statistics(mean: Mean, covariance: Covariance) -> Callable[[Rows], float]:
    """Returns the Fréchet distance to a normal distribution, given by mean and covariance, as a function."""
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not mean.size:
        raise ValueError(f"mean [d] and covariance [d, d] are needed; got {list(mean.shape)}, {list(covariance.shape)}")
    return functools.partial(_frechet, _finite(mean), _root(_finite(covariance)))


def mean_and_covariance(rows: Rows) -> tuple[Mean, Covariance]:
    """Returns mean and covariance (n - 1 in the denominator) of at least two rows."""
    rows = _checked(rows, 2)
    return rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))


def _frechet(mean: Mean, factor: Factor, rows: Rows) -> float:
    """Returns the distance of rows to the distribution of this mean and of the covariance factor^T factor."""
    rows = _checked(rows, 2, like=factor)
    difference, centred = rows.mean(0) - mean, _centred(rows)
    # With C1 = A^T A and C2 = B^T B the nonzero eigenvalues of C1 C2 are the squares of A B^T's singular values. So no
    # root of an eigenvalue near zero, positive or negative by rounding, is taken, except of large matrices, where the
    # eigenvalues take a quarter of the time
    product = centred @ factor.T
    if min(product.shape) <= EXACT:
        overlap = np.linalg.svd(product, compute_uv=False).sum()
    else:
        product = product if len(product) > product.shape[1] else product.T
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(product.T @ product), 0)).sum()
    return float(difference @ difference + np.square(centred).sum() + np.square(factor).sum() - 2 * overlap)


def _normal(rows: Rows) -> tuple[Mean, Factor]:
    """Returns the mean, and a factor A of the covariance A^T A with as few rows as possible."""
    rows = _checked(rows, 2)
    n, d = rows.shape
    if n > d:
        mean, covariance = mean_and_covariance(rows)
        return mean, _root(covariance)
    return rows.mean(0), _centred(rows)


def _centred(rows: Rows) -> Rows:
    return (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)


def _root(covariance: Covariance) -> Factor:
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floor = len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    if values[0] < -1e6 * floor - np.finfo(np.float64).tiny:
        raise ValueError(f"a covariance has no negative eigenvalues; this one has {values[0]:.3g}")
    return np.sqrt(np.where(values > floor, values, 0))[:, None] * vectors.T


def kernel_distance(
    rows: Rows, reference: OtherRows, *, subsets: int = KID_SUBSETS, size: int = KID_SIZE, seed: int = KID_SEED
) -> float:
    """Returns the squared MMD of the kernel (x y / d + 1)^3: the mean of the unbiased estimates of random subsets.

    A subset has `size` rows of each set, or all of the smaller set if it has fewer. If both sets have no more than
    `size` rows, it is the estimate of all rows. Source: Binkowski et al. 2018 (arXiv 1801.01401); clean-fid, fid.py.
    """
    rows, reference = _checked(rows, 2), _checked(reference, 2, like=rows)
    if max(len(rows), len(reference)) <= size:
        return _unbiased(rows, reference)
    m = min(size, len(rows), len(reference))
    rng = np.random.default_rng(seed)
    chosen = ((rng.choice(len(a), m, replace=False) for a in (rows, reference)) for _ in range(subsets))
    return float(np.mean([_unbiased(rows[one], reference[other]) for one, other in chosen]))


def _unbiased(x: Rows, y: OtherRows) -> float:
    within = 0.0
    for a in (x, y):
        kernel = _cubic(a, a)
        within += (kernel.sum() - np.trace(kernel)) / (len(a) * (len(a) - 1))
    return float(within - 2 * _cubic(x, y).mean())


def _cubic(x: Rows, y: OtherRows) -> Float[np.ndarray, "n m"]:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def cmmd(rows: Rows, reference: OtherRows) -> float:
    """Returns CLIP's maximum mean discrepancy: 1000 times the squared MMD of a Gaussian kernel with sigma 10.

    Rows are divided by their length. The estimate is the biased one: pairs of a row with itself count. Source:
    Jayasumana et al. 2024 (arXiv 2401.09603); google-research/cmmd, distance.py.
    """
    x, y = (_unit(_checked(a, 1)) for a in (rows, reference))
    _checked(y, 1, like=x)
    return float(CMMD_SCALE * (_gaussian(x, x) + _gaussian(y, y) - 2 * _gaussian(x, y)))


def _gaussian(x: Rows, y: OtherRows) -> float:
    return float(sum(np.exp(-block / (2 * CMMD_SIGMA**2)).sum() for block in _squares(x, y)) / (len(x) * len(y)))


def precision(rows: Rows, reference: OtherRows, *, neighbours: int = NEIGHBOURS) -> float:
    """Returns the share of pictures that lie in the reference's manifold, in [0, 1].

    The manifold is made of balls around all rows of a set, each as large as the distance to the nearest rows but
    `neighbours` - 1 of the same set. Source: Kynkäänniemi et al. 2019 (arXiv 1904.06991), equations 1 and 2.
    """
    least = neighbours + 1
    rows, reference = _checked(rows, 1), _checked(reference, least)
    _checked(reference, least, like=rows)
    # The 0th of the sorted distances is that of the row to itself
    radii = np.concatenate(
        [np.partition(block, neighbours, 1)[:, neighbours] for block in _squares(reference, reference)]
    )
    inside = sum(int((block <= radii).any(1).sum()) for block in _squares(rows, reference))
    return inside / len(rows)


def recall(rows: Rows, reference: OtherRows, *, neighbours: int = NEIGHBOURS) -> float:
    """Returns the share of the reference's pictures that lie in the manifold of the pictures (see `precision`)."""
    return precision(reference, rows, neighbours=neighbours)


def _squares(x: Rows, y: OtherRows) -> Iterator[Float[np.ndarray, "k m"]]:
    """Yields the squared distances of some rows of x to all of y. They are exactly 0 for a row and itself."""
    squares = np.square(y).sum(1)
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK]
        distances = np.maximum(np.square(block).sum(1)[:, None] + squares - 2 * block @ y.T, 0)
        if x is y:
            distances[np.arange(len(block)), start + np.arange(len(block))] = 0
        yield distances


def inception_score(logits: Rows, *, splits: int = IS_SPLITS) -> float:
    """Returns the inception score, exp of the mean divergence of p(label | picture) from p(label): 1 ... d.

    It is the mean over `splits` equal parts in the pictures' order, at least two pictures each. Source: Salimans et
    al. 2016 (arXiv 1606.03498), section 4.
    """
    logits = _checked(logits, 2)
    logs = logits - logits.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    n, scores = len(logs), []
    splits = max(min(splits, n // 2), 1)
    for i in range(splits):
        part = logs[i * n // splits : (i + 1) * n // splits]
        p = np.exp(part)
        mean = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (part - mean)).sum(1).mean()))
    return float(np.mean(scores))


def cosines(images: Rows, texts: Rows) -> Float[np.ndarray, "n"]:
    """Returns the cosine of every picture's embedding and its text's, in [-1, 1]."""
    images, texts = _checked(images, 1), _checked(texts, 1)
    if images.shape != texts.shape:
        raise ValueError(f"every picture has a text: {images.shape} and {texts.shape} do not fit together")
    return (_unit(images) * _unit(texts)).sum(1)


def clip_score(images: Rows, texts: Rows) -> float:
    """Returns the mean cosine of pictures and their texts. Source: the figures of SD's model cards; MLPerf."""
    return float(cosines(images, texts).mean())


def clip_s(images: Rows, texts: Rows) -> float:
    """Returns CLIP-S: 2.5 times the mean cosine, with negative ones as 0.

    Source: Hessel et al. 2021 (arXiv 2104.08718), section 3. torchmetrics has 100 in place of 2.5.
    """
    return float(2.5 * np.maximum(cosines(images, texts), 0).mean())


def mean_score(scores: Rows) -> float:
    """Returns the mean of scores [n, 1]."""
    return float(_checked(scores, 1).mean())


def _unit(rows: Rows) -> Rows:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError("a row of features is all zeros and has no direction")
    return rows / lengths


def _checked(rows: Rows, least: int, *, like: Rows | None = None) -> Rows:
    """Returns the rows as float64. Raises ValueError if they are too few, not finite, or not as long as `like`."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"features are [n, d], one row a picture; got {list(rows.shape)}")
    if len(rows) < least:
        raise ValueError(f"this measure needs at least {least} picture{'s'[: least > 1]} in a set; got {len(rows)}")
    if like is not None and like.shape[1] != rows.shape[1]:
        raise ValueError(f"two sets of features have {like.shape[1]} and {rows.shape[1]} columns; one network has one")
    return _finite(rows)


def _finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError("features are finite numbers; these have NaN or infinity")
    return np.asarray(array, np.float64)
