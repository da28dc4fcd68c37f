"""Classification by nearest neighbours, which needs no classifier to train."""

import faiss
import numpy as np

from kd_plugins.errors import UserError

_TINY = np.finfo(np.float64).tiny  # a vector of zeros has no direction


def knn_accuracy(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    k: int = 20,
    temperature: float | None = 0.07,
) -> float:
    r"""Return the top-1 accuracy, in percent, of a vote among the k nearest neighbours by cosine similarity.

    Each neighbour votes for its label with weight :math:`\exp(\cos / T)`, or, with ``temperature=None``, with 1. Among
    labels with equal votes the smallest is chosen.

    Args:
        bank: (N, D) features of labelled images.
        bank_labels: (N,) integers from 0.
        queries: (Q, D) features of the images to classify.
        query_labels: (Q,) integers.
        k: Number of neighbours, at least 1; all where the bank has fewer.
        temperature: Temperature T of the weights; None for a plain vote.

    Raises:
        UserError: An option is out of range, or a feature is not finite.

    References:
        1. Wu, Xiong, Yu and Lin: Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018,
           section 3.4 (the weighted vote, T = 0.07).
        2. Caron et al.: Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021 (k = 20).

    Example:
        >>> import numpy as np
        >>> from kd_plugins.evaluation import knn_accuracy
        >>> bank, labels = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([0, 0, 1])
        >>> knn_accuracy(bank, labels, np.array([[2.0, 0.1], [0.1, 3.0]]), np.array([0, 0]), k=1)
        50.0
    """
    if k < 1 or (temperature is not None and not temperature > 0):
        raise UserError(
            f'nearest neighbours: k={k}, temperature={temperature}; expected at least 1, and above 0 or None'
        )
    directions = []
    for features in (bank, queries):
        if not np.isfinite(features).all():
            raise UserError('nearest neighbours: a feature is not finite; check what the network returns')
        features = features.astype(np.float64)
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        directions.append((features / np.maximum(norms, _TINY)).astype(np.float32))
    cosines, items = faiss.knn(directions[1], directions[0], min(k, len(bank)), faiss.METRIC_INNER_PRODUCT)
    weights = np.ones(cosines.shape)
    if temperature is not None:  # relative to the nearest, so that a small temperature does not make all of them 0
        weights = np.exp((cosines - cosines[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(queries), int(bank_labels.max()) + 1))
    np.add.at(votes, (np.arange(len(queries))[:, None], bank_labels[items]), weights)
    return 100 * float((votes.argmax(1) == query_labels).mean())
