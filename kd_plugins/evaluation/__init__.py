"""Retrieval: exact scores, re-ranking, and the metric of a run; and classification by nearest neighbours."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kd_plugins.errors import UserError
from kd_plugins.evaluation.features import ReIDFeatures, load_features, save_features
from kd_plugins.evaluation.reid_metric import ReIDMetric
from kd_plugins.evaluation.retrieval import Retrieval, rank_matches, rank_rows

if TYPE_CHECKING:  # else by __getattr__
    from kd_plugins.evaluation.approximate import rank_approximately
    from kd_plugins.evaluation.knn import knn_accuracy
    from kd_plugins.evaluation.reranking import KReciprocal, expand_queries

__all__ = [
    'KReciprocal',
    'ReIDFeatures',
    'ReIDMetric',
    'Retrieval',
    'expand_queries',
    'knn_accuracy',
    'load_features',
    'rank_approximately',
    'rank_matches',
    'rank_rows',
    'save_features',
]

_BY_FAISS = {
    'KReciprocal': 'reranking',
    'expand_queries': 'reranking',
    'knn_accuracy': 'knn',
    'rank_approximately': 'approximate',
}


def __getattr__(name: str) -> Any:
    """Import what needs faiss and SciPy on its first use: the exact scores need neither."""
    if name not in _BY_FAISS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        return getattr(import_module(f'{__name__}.{_BY_FAISS[name]}'), name)
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs {error.name}, which is not installed: pip install -e '.[reid]'") from error
