import importlib.util
from pathlib import Path

import torch
from mmengine.hooks import Hook

from kd_plugins.utils.code import sources


def test_a_change_of_a_base_or_of_a_decorated_method_is_seen(tmp_path: Path) -> None:
    file = tmp_path / 'own.py'

    def found(base: str, method: str) -> list[str]:
        file.write_text(
            'import torch\n\nclass Base(torch.nn.Module):\n    @torch.no_grad()\n    def forward(self, x):\n'
            f'        return {base}\n'
        )
        spec = importlib.util.spec_from_file_location('own', file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        # Of no file, as in a notebook.
        scope: dict = dict(Base=module.Base, __name__='shell')
        exec(f'class Net(Base):\n    @staticmethod\n    def scale():\n        return {method}', scope)
        return list(sources([scope['Net'], scope['Net']]))

    first = found('x', '1')
    assert [line.partition(' ')[0] for line in first] == ['Base', 'Net']
    assert found('x', '1') == first
    assert [a == b for a, b in zip(found('-x', '1'), first, strict=True)] == [False, True]
    assert [a == b for a, b in zip(found('x', '2'), first, strict=True)] == [True, False]


def test_code_of_no_file_has_no_addresses() -> None:
    def found(constant: str) -> list[str]:
        scope: dict = dict(__name__='shell')
        method = f'def key(self):\n        return (lambda x: x in {{{constant}}}), "b"'
        exec(f'class Net:\n    {method}', scope)
        return list(sources([scope['Net']]))

    first = found('1, 2')
    kept = [found('1, 2') for _ in range(3)]  # at other addresses
    assert all(x == first for x in kept)
    assert found('1, 3') != first


def test_libraries_are_left_out() -> None:
    assert not list(sources([torch.nn.Linear, Hook, dict, Path]))
