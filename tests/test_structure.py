"""The rooms of the package and what each may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from kd_plugins import evaluation
from kd_plugins.errors import UserError

PACKAGE = Path(__file__).parents[1] / 'kd_plugins'
LEAVES = {'classes', 'errors', 'registry', 'utils'}  # anyone may use them
CORE = LEAVES | {'checkpoint', 'distillation', 'pretrained'}
# A room, the rooms it may import from, and the packages outside; both beside its own room and the standard library.
ROOMS = {
    'functional': (set(), {'torch'}),
    'losses': ({'functional', 'registry', 'utils'}, {'torch'}),
    'distillation': (CORE | {'functional', 'losses'}, {'mmengine', 'torch', 'torchvision'}),
    'models': (CORE | {'losses', 'functional'}, {'mmengine', 'mmpretrain', 'torch'}),
    'hooks': (
        CORE | {'commands', 'compat', 'evaluation', 'export', 'losses', 'functional'},
        {'mmengine', 'numpy', 'torch'},
    ),
    'datasets': (
        LEAVES | {'data_files', 'unpickling'},
        {'PIL', 'cv2', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'numpy', 'rich', 'torch'},
    ),
    'evaluation': (LEAVES | {'functional'}, {'faiss', 'mmengine', 'numpy', 'rich', 'scipy', 'torch'}),
    'export': (
        CORE | {'config', 'engine', 'models'},
        {'mmengine', 'numpy', 'rich', 'torch', 'torchvision'},
    ),
    'studies': (
        CORE | {'commands', 'config', 'datasets', 'hooks'},
        {'matplotlib', 'mmengine', 'ray', 'rich', 'scipy', 'torch'},
    ),
    'compat': (LEAVES, {'mmcv', 'mmdet', 'scipy', 'torch', 'torchvision'}),
    'utils': ({'errors'}, {'mmengine', 'numpy', 'torch'}),
    'classes': ({'errors'}, set()),
    'commands': (set(), set()),
    'checkpoint': (LEAVES | {'compat', 'unpickling'}, {'mmengine', 'numpy', 'safetensors', 'torch'}),
    'config': (LEAVES | {'unpickling'}, {'mmengine'}),
    'data_files': (LEAVES, {'torchvision'}),
    'engine': (LEAVES | {'checkpoint', 'config'}, {'mmengine', 'numpy', 'torch'}),
    'errors': ({'tracebacks'}, set()),
    'tracebacks': (set(), {'mmengine'}),
    'optim': (LEAVES, {'mmengine', 'torch'}),
    'options': (LEAVES, {'mmengine', 'torch'}),
    'pretrained': (LEAVES | {'checkpoint'}, {'torch'}),
    'registry': ({'errors', 'utils'}, {'mmengine', 'torch'}),
    'unpickling': (LEAVES, {'mmengine', 'yaml'}),
}


def imported(path: Path) -> set[str]:
    """Return every module that a file imports, anywhere in it, by its absolute name."""
    names = set()
    package = ['kd_plugins', *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add('.'.join([*package[: len(package) - node.level + 1], node.module or '']))
        elif isinstance(node, ast.ImportFrom):
            names |= (
                {f'{node.module}.{alias.name}' for alias in node.names}
                if node.module == 'kd_plugins'
                else {node.module}
            )
    return names


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_rooms(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    rooms, packages = ({'compat'}, set()) if room == '__init__' else ROOMS[room]
    for name in imported(path):
        top, *rest = name.split('.')
        if top == 'kd_plugins':
            assert rest[0] in rooms | {room}, f'{path.name} imports {name}'
        else:
            assert top in packages | sys.stdlib_module_names, f'{path.name} imports {name}'


def test_mmdet_is_imported_for_detection_only():
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob('*.py')
        if any(name.startswith('mmdet') for name in imported(path))
    }
    assert users == {'datasets/voc.py'}


def test_plain_scores_need_neither_faiss_nor_scipy(monkeypatch):
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob('*.py')
        if {'faiss', 'scipy'} & {name.partition('.')[0] for name in imported(path)}
    }
    elsewhere = {'compat/__init__.py', 'studies/results.py'}
    assert users == elsewhere | {f'evaluation/{name}.py' for name in ('approximate', 'knn', 'reranking')}
    for user in users - elsewhere:  # that one where it is called; and nothing imports these in turn
        module = f'kd_plugins.{user.removesuffix(".py").replace("/", ".")}'
        # Its __init__ names them for type checkers; that it imports them no sooner than asked shows below.
        others = {*PACKAGE.rglob('*.py')} - {PACKAGE / 'evaluation/__init__.py'}
        assert not any(module in imported(path) for path in others)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(UserError, match=r"KReciprocal needs faiss.*pip install -e '\.\[reid\]'"):
        evaluation.KReciprocal  # noqa: B018


def test_classification_and_import_stay_free_of_mmdet():
    code = (
        'import sys, kd_plugins; heavy = {"torch", "mmengine", "mmcv", "numpy"} & set(sys.modules); '
        'from kd_plugins.registry import DATASETS, HOOKS, MODELS; '
        'MODELS.get("KDLoss"), HOOKS.get("ExportHook"), DATASETS.get("CIFAR10"); '
        'print(sorted(heavy), "mmdet" in sys.modules)'
    )
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert answer.splitlines()[-1] == '[] False'


@pytest.mark.parametrize('tool', ['benchmark', 'eval_reid', 'export', 'study', 'test', 'train', 'visualize'])
def test_commands_let_idle_threads_sleep_before_torch_is_imported(tool):
    """A command sets the wait policy, where the user has not, among its imports of the standard library."""
    for node in ast.parse((PACKAGE.parent / 'tools' / f'{tool}.py').read_text()).body[1:]:
        if ast.unparse(node) == "os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')":
            return
        names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        assert {name.partition('.')[0] for name in names} <= sys.stdlib_module_names
    pytest.fail('it does not')
