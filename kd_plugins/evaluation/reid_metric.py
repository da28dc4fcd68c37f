"""Retrieval scores of a re-identification run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from kd_plugins.errors import UserError
from kd_plugins.evaluation.features import ReIDFeatures, save_features
from kd_plugins.evaluation.retrieval import AveragePrecision, Metric, rank_matches, rank_rows
from kd_plugins.registry import METRICS

_META = ('identity', 'camera', 'is_query', 'img_path')


@METRICS.register_module()
class ReIDMetric(BaseMetric):
    """mAP, mINP and cumulative matching of query images in a gallery, both from one data set.

    Every data sample needs a ``feature`` (from the model) and, from the data set, ``identity``, ``camera`` and
    ``is_query``; ``img_path`` where features are saved. :func:`kd_plugins.evaluation.retrieval.rank_matches` states
    what is a match, and what is left out. Under data-parallel the features of all processes are gathered, without the
    samples that a sampler repeats to fill the last batch.

    Args:
        metric: ``'cosine'`` or ``'euclidean'``.
        ranks: The k of ``rank<k>``, the fraction of queries with a match among the first k.
        ap: Definition of average precision, see
            :meth:`kd_plugins.evaluation.retrieval.Retrieval.average_precision`.
        rerank: Options of :class:`kd_plugins.evaluation.reranking.KReciprocal`, ``dict()`` for its defaults, to score
            the re-ranked gallery too, under ``rerank_mAP`` and so on; None for no re-ranking.
        save_to: File ``.npz`` in which the features are saved, for ``tools/eval_reid.py`` and ``tools/visualize.py``.
        device: Device that computes the similarities; None for a GPU where there is one.
        collect_device: As in :class:`mmengine.evaluator.BaseMetric`.
        prefix: As in :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        UserError: An option is unknown, a sample lacks one of the fields, or as ``rank_matches``.
    """

    default_prefix = 'reid'

    def __init__(
        self,
        metric: Metric = 'cosine',
        ranks: Sequence[int] = (1, 5, 10, 20),
        ap: AveragePrecision = 'precision',
        rerank: Mapping[str, Any] | None = None,
        save_to: str | None = None,
        device: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        # Checked before the run, not after its last epoch.
        if metric not in get_args(Metric) or ap not in get_args(AveragePrecision):
            raise UserError(
                f'ReIDMetric: expected a metric of {get_args(Metric)} and an ap of '
                f"{get_args(AveragePrecision)}, got '{metric}' and '{ap}'"
            )
        if isinstance(ranks, (str, int)) or not all(isinstance(k, int) and k >= 1 for k in ranks):
            raise UserError(f'ReIDMetric: ranks={ranks!r}; expected whole numbers of at least 1, as (1, 5, 10)')
        if save_to is not None and Path(save_to).suffix != '.npz':
            raise UserError(f'ReIDMetric: save_to={save_to!r}; expected the name of a file .npz')
        self.metric, self.ranks, self.ap, self.device = metric, tuple(ranks), ap, device
        self.rerank, self.save_to = rerank, save_to
        if rerank is not None:
            try:
                self._reranked(np.eye(2), np.eye(2), **rerank)
            except TypeError as error:
                raise UserError(f'ReIDMetric: rerank takes k1, k2 and lambda_value ({error})') from error

    def _reranked(self, query: np.ndarray, gallery: np.ndarray, **options: Any) -> Iterable[tuple[slice, np.ndarray]]:
        from kd_plugins.evaluation import KReciprocal  # needs faiss

        return KReciprocal(query, gallery, metric=self.metric, **options).rows()

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep the features of a batch, with their identities, cameras and paths."""
        for sample in data_samples:
            if 'feature' not in sample:
                raise UserError("ReIDMetric: the model's predictions hold no 'feature'; use kd_plugins.ReIDModel")
            missing = [name for name in _META[:3] if name not in sample]
            if missing:
                raise UserError(
                    f'ReIDMetric: the samples lack {", ".join(missing)}: give the test pipeline '
                    f"dict(type='PackInputs', meta_keys={_META})"
                )
            self.results.append(
                (
                    sample['feature'].detach().float().cpu().numpy(),
                    int(sample['identity']),
                    int(sample['camera']),
                    bool(sample['is_query']),
                    str(sample.get('img_path', '')),
                )
            )

    def compute_metrics(self, results: list[tuple[np.ndarray, int, int, bool, str]]) -> dict[str, float]:
        """Return the scores of all samples."""
        features, ids, cameras, is_query, paths = (np.array(x) for x in zip(*results, strict=True))
        for side, rows in (('query', is_query), ('gallery', ~is_query)):
            if not rows.any():
                raise UserError(
                    f'ReIDMetric: the data set holds no {side} image; use kd_plugins.Market1501 with '
                    "split='test', which holds both"
                )
        found = ReIDFeatures(
            query_features=features[is_query],
            query_ids=ids[is_query],
            query_cams=cameras[is_query],
            gallery_features=features[~is_query],
            gallery_ids=ids[~is_query],
            gallery_cams=cameras[~is_query],
            query_paths=paths[is_query],
            gallery_paths=paths[~is_query],
        )
        if self.save_to:
            save_features(found, self.save_to)
        retrieval = rank_matches(found, self.metric, self.device)
        MMLogger.get_current_instance().info(
            f'{len(retrieval.queries)} queries in {len(found.gallery_ids)} items by {self.metric} similarity, AP by '
            f'{self.ap}; {retrieval.unmatched} queries without a match are left out'
        )
        scores = retrieval.summary(self.ranks, self.ap)
        if self.rerank is not None:
            found = found.without_junk()
            again = rank_rows(self._reranked(found.query_features, found.gallery_features, **self.rerank), found)
            scores |= {f'rerank_{name}': value for name, value in again.summary(self.ranks, self.ap).items()}
        return scores
