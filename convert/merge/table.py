"""The table of merging methods."""

from sdjax.convert.merge import cosine, spherical, sums, task_vectors
from sdjax.convert.merge.method import Method

METHODS: dict[str, Method] = {
    "weighted_sum": Method(sums.weighted_sum, 2, None, 0.5, True, "(1 - r1 - ...) A + r1 B + r2 C + ..."),
    "add_difference": Method(sums.add_difference, 3, 3, 1.0, False, "A + r (B - C)"),
    "train_difference": Method(sums.train_difference, 3, 3, 1.0, False, "A trained by B - C, as supermerger"),
    "slerp": Method(spherical.slerp, 2, 2, 0.5, False, "between A and B on a circle, tensor by tensor"),
    "cosine_a": Method(cosine.cosine_a, 2, 2, 0.5, False, "supermerger's cosineA", survey=cosine.of_columns),
    "cosine_b": Method(cosine.cosine_b, 2, 2, 0.5, False, "supermerger's cosineB", survey=cosine.similarity),
    "task_arithmetic": Method(task_vectors.task_arithmetic, 2, None, 1.0, True, "A + r1 (B - A) + r2 (C - A) + ..."),
    "magnitude_prune": Method(
        task_vectors.magnitude_prune, 2, None, 1.0, True, "the same with largest entries alone", ("density",)
    ),
    "ties": Method(
        task_vectors.ties, 2, None, 1.0, True, "largest entries, averaged where signs agree", ("density", "sign")
    ),
    "dare_linear": Method(
        task_vectors.dare_linear, 2, None, 1.0, True, "drawn entries, made larger", ("density", "seed")
    ),
    "dare_ties": Method(
        task_vectors.dare_ties, 2, None, 1.0, True, "drawn entries, averaged where signs agree",
        ("density", "sign", "seed"),
    ),
}  # fmt: skip
LINEAR = tuple(name for name in METHODS if name not in ("slerp", "cosine_a", "cosine_b"))  # A + ratio times a change
