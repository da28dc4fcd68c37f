"""One mistake of each kind at the command lines; tests/mistakes.py has hundreds, and measures them."""

import pytest
from mistakes import KINDS, Bench, Mistake, any_teacher, representatives, verdict


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp('mistakes') / 'bench', imports='')
    yield bench
    bench.close()


@pytest.mark.parametrize('mistake', representatives(), ids=lambda mistake: mistake.kind)
def test_a_mistake_of_each_kind_ends_in_one_clear_line(bench, mistake):
    end, said = bench.run(mistake)
    assert end == 'clear', f'{mistake.name}: {said}'


@pytest.mark.parametrize('mistake', any_teacher(), ids=lambda mistake: mistake.name)
def test_a_mistake_in_a_run_without_labels_ends_in_one_clear_line(bench, mistake):
    end, said = bench.run(mistake)
    assert end == 'clear', f'{mistake.name}: {said}'


def test_an_adapter_larger_than_the_student_is_noticed(bench):
    adapter = "dict(type='Conv2d', in_channels=16, out_channels=512, kernel_size=3)"
    change = f"log_level = 'WARNING'\ncustom_hooks[0]['terms'][0]['adapter'] = {adapter}"
    end, said = bench.run(Mistake('', 'unlabelled', change, ['x']))
    assert end == 'exit 0', said
    (line,) = [x for x in (bench.last / 'stdout').read_text().splitlines() + said.splitlines() if 'its adapter' in x]
    assert "term 'nst': its adapter has 74,240 parameters, more than the student's" in line


def test_every_kind_is_here():
    assert [mistake.kind for mistake in representatives()] == list(KINDS)


def test_a_good_config_trains(bench):
    """Else all the others would end in an error too."""
    assert bench.run(Mistake('', 'hook', '', ['x'])) == ('exit 0', '')


@pytest.mark.parametrize(
    ('status', 'stderr', 'stdout', 'end'),
    [
        (1, 'error: batch_size is 0\n', '', 'clear'),
        (1, 'error: it is 0\n', '', 'misleading'),
        (0, '', '', 'exit 0'),
        (None, '', '', 'hung'),
        (1, 'Traceback (most recent call last):\nKeyError: batch_size\n', '', 'traceback'),
        (1, 'error: batch_size\nerror: batch_size\n', '', 'traceback'),
        (1, '', '', 'traceback'),
        (1, 'error: batch_size\n', 'Traceback (most recent call last):\n', 'traceback'),
        (2, 'usage: train.py [-h]\ntrain.py: error: argument --batch_size\n', '', 'clear'),
    ],
)
def test_how_an_end_is_judged(tmp_path, status, stderr, stdout, end):
    assert verdict(status, stderr, stdout, ['batch_size|size'], tmp_path) == end
