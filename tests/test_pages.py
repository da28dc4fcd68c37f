"""Every page says what is there: its links, commands, configs, options, names of the package, and figures."""

import ast
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_plugins import registry
from kd_plugins.config import check_config, load_config
from kd_plugins.errors import UserError
from kd_plugins.studies.plan import load_study

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob('*.md'),
    *(page for room in ('configs', 'kd_plugins', 'tools') for page in ROOT.glob(f'{room}/**/*.md')),
]
METAFILES = sorted(ROOT.glob('configs/**/metafile.yml'))
REGISTRIES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
FREE = {'cd', 'git', 'ln', 'mkdir', 'ruff'}  # commands of other programs, of which nothing is checked


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each fenced block."""
    for match in re.finditer(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings have on GitHub."""
    headings = re.findall(r'^#+ (.+)$', prose(page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def functions_of(path: Path) -> set[str]:
    """Return the names of a test file's functions."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def wrong_links(page: Path, text: str) -> Iterator[str]:
    """Yield links to files, anchors or tests that are not there; a link to a test has its name as its title."""
    for target, title in re.findall(r'\]\(([^)\s]+)(?: "([^"]*)")?\)', prose(text)):
        if target.startswith('https://'):
            continue
        name, _, anchor = target.partition('#')
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            yield f'link to {target}: there is no such file'
        elif anchor and anchor not in anchors(path):
            yield f'link to {target}: {path.name} has no such heading'
        elif title and title not in functions_of(path):
            yield f'link to {target}: there is no {title} in it'


def options_of(tool: Path) -> str:
    """Return the source in which a command's options and choices are."""
    beside = {'benchmark': 'benchmarks', 'visualize': 'visuals'}.get(tool.stem, '')
    package = ['options.py', 'studies/plan.py']
    files = [tool, *(tool.parent / beside).glob('*.py')] if beside else [tool]
    files += [ROOT / 'kd_plugins' / name for name in package]
    return '\n'.join(f"'{path.stem}' {path.read_text()}" for path in files)


def run_folders() -> set[str]:
    """Return where the configs write, below work_dirs/."""
    return {path.relative_to(ROOT / 'configs').with_suffix('').as_posix() for path in ROOT.glob('configs/**/*.py')}


@cache
def error_of(path: str, study: bool, environment: tuple[str | None, ...]) -> str:
    """Return what is wrong with a config or a study, as the environment makes it."""
    try:
        (load_study if study else load_config)(path)
    except UserError as error:
        return str(error)
    return ''


def wrong_arguments(tool: Path, words: list[str]) -> Iterator[str]:
    """Yield what of a command's arguments is not there."""
    source = options_of(tool)
    for number, word in enumerate(words):
        option = word.partition('=')[0]
        if option.startswith('--') and f"'{option}'" not in source:
            yield f'{tool.name} has no option {option}'
        elif word.startswith(('configs/', 'kd_plugins::')) and word.endswith('.py'):
            if error := error_of(
                word, tool.stem == 'study', tuple(map(os.environ.get, ('METHOD', 'NETWORK', 'DTD_SPLIT')))
            ):
                yield error
        elif word.startswith('work_dirs/') and word.endswith('/student.pth'):
            folder = word.removeprefix('work_dirs/').removesuffix('/student.pth')
            if not any(folder == known or folder.startswith(f'{known}/') for known in run_folders()):
                yield f'no config writes {word}'
        elif not number and re.fullmatch(r'[a-z][\w-]*', word) and f"'{word}'" not in source:
            yield f'{tool.name} knows no {word}'


def wrong_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield what is wrong with a command."""
    while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
        name, _, value = words.pop(0).partition('=')
        monkeypatch.setenv(name, value)
    program, *rest = words
    setup = (ROOT / 'setup.py').read_text()
    if program.startswith('kd-'):
        tool = ROOT / 'tools' / f'{program.removeprefix("kd-").replace("-", "_")}.py'
        if not tool.is_file():
            yield f'setup.py installs no {program}'
        else:
            yield from wrong_arguments(tool, rest)
    elif program in ('python', 'torchrun') and rest[:1] != ['-m']:
        scripts = [word for word in rest if word.endswith('.py')]
        tool = ROOT / scripts[0]
        if not tool.is_file():
            yield f'there is no {scripts[0]}'
        else:
            yield from wrong_arguments(tool, rest[rest.index(scripts[0]) + 1 :])
    elif program == 'python' and rest[1] == 'pytest':
        paths = [word for word in rest[2:] if word.startswith('tests/')]
        yield from (f'there is no {path}' for path in paths if not (ROOT / path).exists())
    elif program == 'pip':
        yield from (f'there is no {word}' for word in rest if word.endswith('.txt') and not (ROOT / word).is_file())
        extras = [extra for word in rest for found in re.findall(r'\[(.+)\]', word) for extra in found.split(',')]
        yield from (f'setup.py has no extra {extra}' for extra in extras if f"'{extra}':" not in setup)
    elif program.startswith('.'):
        if not (ROOT / program).is_file():
            yield f'there is no {program}'
        else:
            yield from wrong_arguments(ROOT / program, rest)
    elif program not in FREE:
        yield f'unknown command {program}'


def wrong_shell(text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield what is wrong with the commands of a block."""
    for line in text.replace('\\\n', ' ').splitlines():
        for command in line.split('&&'):
            if words := shlex.split(command, comments=True):
                with monkeypatch.context() as patch:
                    yield from wrong_command(words, patch)


def wrong_python(text: str, folder: Path, namespace: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a block of Python: a config, a study, or code, which runs and then its tests."""
    file = folder / 'block.py'
    file.write_text(text)
    try:
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    except SyntaxError as error:
        yield f'{error}: {text}'
        return
    try:
        if '_base_' in names:
            check_config(load_config(str(file)), 'train')
        elif {'networks', 'methods'} <= names:
            load_study(str(file))
        else:
            exec(compile(text, str(file), 'exec'), namespace)
    except (UserError, ImportError, NameError) as error:
        yield str(error)


def wrong_names(text: str) -> Iterator[str]:
    """Yield classes, modules and files of the project that are not there."""
    for name in sorted(set(re.findall(r'\bkd_plugins\.([A-Z]\w+)', text))):
        if all(known.get(f'kd_plugins.{name}') is None for known in REGISTRIES):
            yield f'kd_plugins.{name} is not registered'
    for name in sorted(set(re.findall(r'\bkd_plugins((?:\.[a-z_]\w*)+)', text))):
        *modules, last = name.strip('.').split('.')
        path = ROOT.joinpath('kd_plugins', *modules)
        source = next((p for p in (path / '__init__.py', path.with_suffix('.py')) if p.is_file()), None)
        module = (path / last).is_dir() or (path / f'{last}.py').is_file()
        if not module and (source is None or last not in source.read_text()):
            yield f'there is no kd_plugins{name}'
    words = re.findall(r'`((?:configs|kd_plugins|tools|tests|\.ci|\.pages)/[\w./*-]*)`', text)
    yield from (f'there is no {word}' for word in sorted(set(words)) if not list(ROOT.glob(word.rstrip('/'))))


def wrong(page: Path, text: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Return everything on a page that is not so."""
    monkeypatch.chdir(ROOT)
    namespace: dict[str, Any] = {'__name__': 'page'}
    found = [*wrong_links(page, text)]
    for language, block in blocks(text):
        if language in ('bash', 'sh', 'shell', 'console'):
            found += wrong_shell(block, monkeypatch)
        elif language == 'python':
            found += wrong_python(block, folder, namespace)
        elif language not in ('text', 'bibtex', 'json'):
            found.append(f'a block in an unknown language, {language!r}')
    for name, function in namespace.items():
        if name.startswith('test_'):
            function()
    if page.name != 'CHANGELOG.md':  # it names what is gone
        found += wrong_names(text)
    for name in [name for name, class_ in registry.MODELS.module_dict.items() if class_.__module__ == 'page']:
        del registry.MODELS.module_dict[name]
    return found


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_says_what_is_there(page, monkeypatch, tmp_path):
    assert wrong(page, page.read_text(), monkeypatch, tmp_path) == []


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('[x](nowhere.md)', 'no such file'),
        ('[x](README.md#nowhere)', 'no such heading'),
        ('[x](tests/test_pages.py "test_nothing")', 'there is no test_nothing'),
        ('`configs/nowhere.py`', 'there is no configs/nowhere.py'),
        ('`kd_plugins.NoLoss`', 'kd_plugins.NoLoss is not registered'),
        ('`kd_plugins.checkpoint.no_function()`', 'there is no kd_plugins.checkpoint.no_function'),
        ('```bash\npython tools/train.py configs/nowhere.py\n```', 'config configs/nowhere.py does not exist'),
        ('```bash\npython tools/nowhere.py x\n```', 'there is no tools/nowhere.py'),
        ('```bash\npython tools/train.py configs/nst_voc.py --fast\n```', 'train.py has no option --fast'),
        ('```bash\npython tools/prepare_data.py voc2005\n```', 'prepare_data.py knows no voc2005'),
        ('```bash\nX=1 python tools/test.py configs/nst_voc.py work_dirs/x/student.pth\n```', 'no config writes'),
        ("```bash\npip install -e '.[nothing]'\n```", 'setup.py has no extra nothing'),
        ('```bash\nkd-nothing\n```', 'setup.py installs no kd-nothing'),
        ('```bash\nmake all\n```', 'unknown command make'),
        ('```bash\nMETHOD=kd+x python tools/train.py configs/cifar10/resnet8_from_resnet26.py\n```', "no method 'x'"),
        ('```bash\nkd-train kd_plugins::nowhere.py\n```', 'nowhere.py'),
        ("```python\n_base_ = 'mmdet::nowhere.py'\n```", 'config mmdet::nowhere.py does not exist'),
        ('```python\nfrom kd_plugins.functional import no_loss\n```', 'cannot import name'),
        ('```python\nx = (\n```', 'never closed'),
        ('```yaml\n```', 'unknown language'),
    ],
)
def test_what_is_wrong_is_found(text, found, monkeypatch, tmp_path):
    (error,) = wrong(ROOT / 'README.md', f'{text}\n', monkeypatch, tmp_path)
    assert found in error


def test_the_readme_is_short_and_every_page_is_reached_from_it():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 200
    todo, reached = [ROOT / 'README.md'], set()
    while todo:
        if (page := todo.pop()) not in reached:
            reached.add(page)
            targets = re.findall(r'\]\(([^)\s#]+\.md)', prose(page.read_text()))
            todo += [(page.parent / target).resolve() for target in targets if '://' not in target]
    assert set(PAGES) <= reached


def numbers(text: str) -> set[float]:
    return {float(x) for x in re.findall(r'\d+(?:\.\d+)?', text)}


def test_the_index_names_every_metafile():
    index = yaml.safe_load((ROOT / 'kd_plugins/.mim/model-index.yml').read_text())
    assert index['Import'] == [path.relative_to(ROOT).as_posix() for path in METAFILES]


@pytest.mark.parametrize('path', METAFILES, ids=lambda path: path.parent.name)
def test_the_figures_of_a_metafile_stand_on_its_page(path):
    content = yaml.safe_load(path.read_text())
    assert content['Models']
    for entry in content['Collections']:
        assert (ROOT / entry['README']).is_file()
    collections = {entry['Name'] for entry in content['Collections']}
    for model in content['Models']:
        assert model['In Collection'] in collections
        assert (ROOT / model['Config']).is_file()
        for result in model['Results']:
            missing = {float(x) for x in result['Metrics'].values()} - numbers((path.parent / 'README.md').read_text())
            assert not missing, f'{model["Name"]}: {missing} are not in the README'


def test_the_figures_of_which_loss_when_are_in_the_tables_it_links_to():
    """In the last cell of a line with links, and in the last three columns of the table by loss."""
    page = ROOT / 'kd_plugins/losses/README.md'
    text = page.read_text()
    everything = [page.parent / link for link in re.findall(r'\]\(([^)#\s]+)', text)]
    found = 0
    for row in re.findall(r'^\| .* \|$', text, re.MULTILINE):
        cells = [cell.strip() for cell in row.strip('|').split(' | ')]
        claims = ' '.join(cells[3:])
        linked = [page.parent / link for link in re.findall(r'\]\(([^)#\s]+)', claims)] or everything
        sources = ' '.join(path.read_text() for path in linked if path.is_file())
        for figure in re.findall(r'\d+\.\d+', re.sub(r'\(\S+\)', '', claims)):
            assert figure in sources, f'{figure} of {row}'
            found += 1
    assert found > 60


def test_pictures_are_small_and_used():
    pictures = [path for path in (ROOT / '.pages').iterdir() if path.suffix in ('.svg', '.png')]
    assert all(path.stat().st_size < 100_000 for path in pictures)
    used = ' '.join(page.read_text() for page in PAGES)
    assert all(path.name in used for path in pictures)
