"""The examples in the docstrings: each public loss has one, and all are true."""

import doctest
from collections.abc import Iterator

import pytest

from kd_plugins import evaluation, functional, losses
from kd_plugins.registry import MODELS

NEED_FAISS = {'KReciprocal', 'expand_queries', 'rank_approximately'}
PUBLIC = [(room, name) for room in (functional, losses, evaluation) for name in room.__all__]
# What must have an example: each loss that a config can name, and what scores a retrieval.
SHOWN = {name for name in losses.__all__ if name in MODELS.module_dict} | {
    name for name in evaluation.__all__ if name not in ('ReIDMetric', 'Retrieval', 'save_features')
}


def examples_of(room: object, name: str) -> Iterator[doctest.DocTest]:
    return (x for x in doctest.DocTestFinder().find(getattr(room, name), name, module=False, globs={}) if x.examples)


@pytest.mark.parametrize(('room', 'name'), PUBLIC, ids=[name for _, name in PUBLIC])
def test_examples_are_true(room, name, request):
    if name in NEED_FAISS:
        request.getfixturevalue('faiss')
    examples = list(examples_of(room, name))
    assert examples or name not in SHOWN, f'{name}: its docstring has no Example'
    for example in examples:
        report: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=report.append)
        assert not report, ''.join(report)
