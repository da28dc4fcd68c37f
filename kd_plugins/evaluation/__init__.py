"""Retrieval: exact scores, re-ranking, and the metric of a run."""

from kd_plugins.evaluation.approximate import rank_approximately
from kd_plugins.evaluation.features import ReIDFeatures, load_features, save_features
from kd_plugins.evaluation.reid_metric import ReIDMetric
from kd_plugins.evaluation.reranking import KReciprocal, expand_queries
from kd_plugins.evaluation.retrieval import Retrieval, rank_matches, rank_rows

__all__ = [
    'KReciprocal',
    'ReIDFeatures',
    'ReIDMetric',
    'Retrieval',
    'expand_queries',
    'load_features',
    'rank_approximately',
    'rank_matches',
    'rank_rows',
    'save_features',
]
