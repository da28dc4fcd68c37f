"""What a study file becomes, and the messages on mistakes in it."""

import math
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from tiny import image_folder
from tiny_study import FEW, ROOT, write_study

from kd_plugins.errors import UserError
from kd_plugins.registry import DATASETS
from kd_plugins.studies import data as studies_data
from kd_plugins.studies import plan, report
from kd_plugins.studies.checks import check_runs


def test_a_teacher_of_the_students_own_architecture_is_another_run(here, data):
    path = write_study(here, data, "teachers['big']['overrides'] = dict()\nteacher_seeds = 'each'\n")
    study = plan.load_study(str(path))
    seeds = {run.seed: run.config['randomness']['seed'] for run in study.teachers}
    assert seeds == {0: 1000, 1: 1001}
    assert {run.config['randomness']['seed'] for run in study.students} == {0, 1}
    assert 'one teacher for each seed, of seed 1000 + that, trained on clean data' in report.caption(study)
    path.write_text(path.read_text() + "teacher_seeds = 'one'\nseeds = [7, 8]\n")
    assert 'one teacher for all seeds, of seed 1007, ' in report.caption(plan.load_study(str(path)))


def test_a_teacher_for_each_seed_and_kind_of_data(here, data):
    path = str(write_study(here, data))

    def teachers(more: str) -> list[str]:
        write_study(here, data, more)
        return [x.folder.relative_to(here / 'r').as_posix() for x in plan.load_study(path, str(here / 'r')).teachers]

    assert teachers('') == ['teachers/big/clean/seed0']
    assert teachers("teacher_seeds = 'each'") == ['teachers/big/clean/seed0', 'teachers/big/clean/seed1']
    assert teachers("teacher_data = 'same'") == ['teachers/big/clean/seed0', 'teachers/big/sigma=0.4/seed0']
    assert teachers("corruptions = {'noisy': dict(label_noise=dict(rate=0.2))}") == ['teachers/big/clean/seed0']
    study = plan.load_study(path, str(here / 'r'))
    assert 'label_noise' not in study.teachers[0].config['train_dataloader']['dataset']['dataset']
    assert study.students[0].config['train_dataloader']['dataset']['dataset']['label_noise'] == dict(rate=0.2)


def test_names_in_any_script_name_folders():
    assert [plan.slug(name) for name in ('KD + NST', 'a_b', 'sigma=0.4')] == ['kd-+-nst', 'a-b', 'sigma=0.4']
    assert [plan.slug(name) for name in ('σ=0.4', 'γ=0.4', '蒸馏', 'Größe')] == ['σ=0.4', 'γ=0.4', '蒸馏', 'größe']


def test_terms_of_a_networks_own_file_are_none_of_a_study(here, data):
    """They would be noted, as set but not trained."""
    path = str(write_study(here, data))
    network = here / 'net.py'
    network.write_text(f"{network.read_text()}\nterms = [dict(name='own')]\nteacher = dict(config='own.py')\n")
    for run in plan.load_study(path).students:
        assert not {'terms', 'teacher'} & run.config.keys()


def test_a_given_teacher_is_not_trained(here, data):
    (here / 'given.py').write_text(
        'from torch import nn\n\n\ndef network():\n'
        '    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))\n'
    )
    given = "teachers = dict(big=dict(given=dict(build='given.py:network', data_preprocessor={{}})))\n"
    terms = "[dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='{}')]"
    more = given + "methods = {{'Baseline': dict(), 'KD': dict(terms={})}}\nteacher_cache = True\n"
    study = plan.load_study(str(write_study(here, data, more.format(terms.format('2')))))
    assert not study.teachers
    kd = next(run for run in study.runs if run.method == 'KD')
    cache = (study.root / 'teachers/big/answers').as_posix()
    assert kd.config['custom_hooks'][-1]['teacher'] == dict(build='given.py:network', data_preprocessor={}, cache=cache)
    assert not kd.needs
    check_runs(study)
    assert 'one teacher' not in report.caption(study)
    empty = more.format(terms.format('2')) + 'teachers = dict(big=dict(given=dict()))\n'
    with pytest.raises(UserError, match='a teacher comes from exactly one of'):
        check_runs(plan.load_study(str(write_study(here, data, empty))))
    study = plan.load_study(str(write_study(here, data, more.format(terms.format('3')))))
    with pytest.raises(UserError, match="KD / seed 0: the teacher, Sequential, has no module '3' to tap"):
        check_runs(study)


def test_conditions_reach_the_innermost_data_set_and_wrap_what_is_not_cifar():
    loader = dict(dataset=dict(type='A', dataset=dict(type='kd_plugins.CIFAR100', split='train')))
    studies_data.corrupt(loader, dict(imbalance=dict(gamma=1)))
    assert loader['dataset']['dataset'] == dict(type='kd_plugins.CIFAR100', split='train', imbalance=dict(gamma=1))
    loader = dict(dataset=dict(type='CustomDataset', data_root='x'))
    studies_data.corrupt(loader, dict(label_noise=dict(rate=0.1)))
    assert loader['dataset'] == dict(
        type='kd_plugins.Corrupted', dataset=dict(type='CustomDataset', data_root='x'), label_noise=dict(rate=0.1)
    )


def test_wrapping_keeps_the_networks_record_and_the_overrides(here, data):
    path = write_study(
        here,
        data,
        "methods = {'Baseline': dict(), 'ONE': dict(wrap=dict(type='X', branches=3), "
        'overrides=dict(model=dict(backbone=dict(width=8))))}\n',
    )
    one = next(run for run in plan.load_study(str(path)).students if run.method == 'ONE')
    assert (one.config['model']['type'], one.config['model']['branches']) == ('X', 3)
    assert one.config['model']['student']['backbone'] == dict(type='kd_plugins.CifarResNet', depth=8, width=8)
    assert not one.needs


def test_a_network_adds_to_a_method(here, data):
    path = write_study(
        here,
        data,
        "methods = {'Baseline': dict(), 'ONE': dict(wrap=dict(type='X', branches=3))}\n"
        "networks['other'] = dict(networks['small'], methods={'ONE': dict(wrap=dict(a=1))})",
    )
    models = {(run.network, run.method): run.config['model'] for run in plan.load_study(str(path)).students}
    assert models['other', 'ONE'] == dict(models['small', 'ONE'], a=1)
    assert models['other', 'ONE']['branches'] == 3
    assert models['other', 'Baseline'] == models['small', 'Baseline']


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ("networks['small']['methods'] = dict(ONE=dict())", r"networks\['small'\]\['methods'\] has no option 'ONE'"),
        ("networks['small']['methods'] = dict(Baseline='kd')", r"\['methods'\]\['Baseline'\] is 'kd', expected a dict"),
        ("networks['small']['methods'] = dict(Baseline=dict(warp=dict()))", r"\['Baseline'\] has no option 'warp'"),
        (
            "networks['small']['methods'] = dict(Hinton=dict(first='Two stages'))",
            r"networks\['small'\]\['methods'\]\['Hinton'\]: first is 'Two stages', expected a method above it",
        ),
        ("networks['small']['methods'] = dict(Hinton=dict(first='no'))", "first is 'no', expected a method above it"),
        ("networks['small']['methods'] = dict(Hinton=dict(first=5))", r"\['Hinton'\]\['first'\] is 5, expected a dict"),
        (
            "networks['small']['methods'] = dict(Hinton=dict(first=dict(term=['kd'])))",
            r"networks\['small'\]\['methods'\]\['Hinton'\]\['first'\] has no option 'term'",
        ),
        ("networks['small']['methods'] = {'Two stages': dict(wrap=dict(type='X'))}", 'has first and wrap'),
        ("methods = {'A': dict(first=5)}", r"methods\['A'\]\['first'\] is 5, expected a dict"),
        ("methods = {'A': dict(term=['kd'])}", "has no option 'term'"),
        ("methods = {'A': dict(first=dict(term=['kd']))}", r"methods\['A'\]\['first'\] has no option 'term'"),
        ("methods = {'A': dict(first=dict(first=dict()))}", r"\['first'\] has no option 'first'"),
        ('methodes = {}', "a study has no option 'methodes'; the nearest is 'methods'"),
        ('teachers_common = {}', "the nearest is 'teacher_common'"),
        ('seeds = [0, 0]', r'seeds is \[0, 0\], expected a list of different whole numbers from 0 to 999'),
        ('seeds = []', r'seeds is \[\], expected'),
        ('seeds = 3', 'seeds is 3, expected'),
        ('seeds = [0, -1]', 'expected a list of different'),
        ('seeds = [0.5]', 'expected a list of different'),
        ('seeds = [1000]', 'expected a list of different'),  # a teacher's
        ("baseline = 'Student'", "baseline is 'Student', expected one of 'Baseline', 'Hinton', 'Two stages'"),
        ("networks = dict(small=dict(teacher='big'))", r"networks\['small'\] names no config"),
        ('teachers = dict(big=dict())', r"teachers\['big'\] names no config"),
        ("teachers = dict(big=dict(given=dict(), config='net.py'))", r"teachers\['big'\] has given beside config"),
        ("methods = {'A-b': dict(), 'a b': dict()}", 'must differ'),
        ("teacher_data = 'dirty'", "teacher_data is 'dirty', expected one of 'clean', 'same'"),
        ("corruptions = ['clean']", r"corruptions is \['clean'\], expected a dict"),
        ('corruptions = dict(x=0.4)', r"corruptions\['x'\] is 0.4, expected a dict"),
        ('corruptions = dict(x=dict(label_nois=dict(rate=.4)))', "has no option 'label_nois'"),
        ('corruptions = dict(x=dict(label_noise=0.4))', r"corruptions\['x'\]: label_noise is 0.4; expected a dict"),
        ('corruptions = dict(x=dict(label_noise=dict(rate=4)))', r"corruptions\['x'\]: label_noise: rate=4, "),
        (
            'corruptions = dict(x=dict(imbalance=dict(gamma=0, most=9)))',
            r"corruptions\['x'\]: imbalance: gamma=0, most=9",
        ),
        ('corruptions = dict(x=dict(common=[]))', r"corruptions\['x'\]: common is \[\], expected a dict"),
        ('methods = dict(A=None)', r"methods\['A'\] is None, expected a dict"),
        ("methods = dict(A=dict(wrap='ONE'))", r"methods\['A'\]: wrap is 'ONE', expected a dict"),
        ('methods = dict(A=dict(wrap=dict(peers=2)))', r"methods\['A'\]: wrap names no type"),
        ("methods = dict(A=dict(terms='kd'))", r"methods\['A'\]: terms is 'kd', expected a list"),
        (
            "methods = dict(A=dict(hook=dict(task='off')))",
            "'A'] has hook, which is about a DistillationHook, but no",
        ),
        ("networks['small']['methods'] = ['A']", r"networks\['small'\]\['methods'\] is \['A'\], expected a dict"),
        ('methods = dict(A=dict(teacher_cache=True))', "'A'] has teacher_cache, which is about a DistillationHook"),
        ("methods = dict(A=dict(terms=['kd'], hook=dict(tsk=False)))", "hook has no option 'tsk'; options are task"),
        ('methods = dict(A=dict(first=dict(hook=[])))', r"methods\['A'\]\['first'\]: hook is \[\], expected a dict"),
        ("methods = dict(A=dict(first='B'), B=dict())", "first is 'B', expected a method above it"),
        ('methods = dict(A=dict(overrides=dict(modl=dict())))', "overrides has 'modl', .* but 'model' is"),
        ("methods = dict(A=dict(first=dict(), wrap=dict(type='kd_plugins.MutualLearning')))", 'has first and wrap'),
        (
            'methods = dict(A=dict(terms=[dict(loss=dict())]))',
            "the term {'loss': {}} is neither a name nor a config dict",
        ),
        ("validation = dict(size=9, part='val')", "validation has no option 'part' here"),
        ('corruptions = dict(x=dict(imbalance=dict(gamma=400)))', 'gamma=400, .* a gamma of 1e-06 to 50'),
        ('corruptions = dict(x=dict(imbalance=dict(gamma=1, most=-5)))', 'most=-5'),
        ('corruptions = dict(x=dict(imbalance=dict(gamma=1, least=-1)))', 'least=-1'),
        ('validation = dict(size=9)\ncommon = dict(val_evaluator=None)', 'has no val_dataloader or no val_evaluator'),
        ('common = dict(optim_wrapper=dict(optimzer=dict(lr=1)))', r"common\['optim_wrapper'\] has 'optimzer'"),
        ("networks = ['a']", r"networks is \['a'\], expected a dict"),
        ('teacher_common = None', 'teacher_common is None, expected a dict'),
        ("references = dict(table='x')", 'references is .*, expected a list'),
        ("teacher_cache = 'yes'", "teacher_cache is 'yes', expected one of False, True"),
        (
            "methods = dict(A=dict(terms=['kd'], teacher_cache=1.5))",
            'teacher_cache is 1.5, expected one of False, True',
        ),
        ('validation = 5000', 'validation is 5000; expected a dict of size'),
        ('validation = dict(size=0)', 'validation: size=0'),
        ("networks = dict(small=dict(config='net.py'))", "needs a teacher, but network 'small' names none"),
        ("networks = dict(small=dict(config='net.py', teacher='b'))", "there is no teacher 'b'; the teachers are big"),
        ("networks = dict(small=dict(config='nowhere.py', teacher='big'))", 'nowhere.py does not exist'),
    ],
)
def test_mistakes_in_a_study_are_reported_in_one_line(here, data, more, message):
    path = write_study(here, data, more.replace('= dict(small=', '= dict(_delete_=True, small='))
    text = path.read_text().replace('_delete_=True, ', '')
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        plan.load_study(str(path))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'record',
    [
        "dict(network='small')",
        "dict(network='small', table=3)",
        "'x'",
        "dict(net='small', table='a b')",
        "dict(network='small', table=' ')",
    ],
)
def test_a_reference_without_a_table_is_reported_before_anything_trains(here, data, record):
    study = plan.load_study(str(write_study(here, data, f'references = [{record}]\n')))
    with pytest.raises(UserError, match='is no published table; expected dict'):
        report.references(study)


def test_a_condition_may_have_a_schedule_of_its_own(here, data):
    path = write_study(
        here,
        data,
        """
corruptions = {'clean': dict(), 'rare': dict(
    imbalance=dict(gamma=1), common=dict(train_cfg=dict(max_epochs=7), optim_wrapper=dict(optimizer=dict(lr=0.5))),
    teacher_common=dict(train_cfg=dict(max_epochs=9)))}
common = dict(train_cfg=dict(max_epochs=3))
teacher_common = dict(train_cfg=dict(max_epochs=4))
networks['small']['overrides'] = dict(optim_wrapper=dict(optimizer=dict(lr=0.2)))
teacher_data = 'same'
""",
    )
    runs = plan.load_study(str(path)).runs
    found = {
        (run.part, run.corruption): (
            run.config['train_cfg']['max_epochs'],
            run.config['optim_wrapper']['optimizer']['lr'],
        )
        for run in runs
    }
    assert found == {
        ('teacher', 'clean'): (4, 0.05),
        ('teacher', 'rare'): (9, 0.5),
        ('student', 'clean'): (3, 0.2),
        ('student', 'rare'): (7, 0.2),
        ('first', 'clean'): (3, 0.2),
        ('first', 'rare'): (7, 0.2),
    }
    data_of = {run.corruption: run.config['train_dataloader']['dataset']['dataset'] for run in runs}
    assert data_of['rare']['imbalance'] == dict(gamma=1)
    assert 'common' not in data_of['rare']
    assert 'imbalance' not in data_of['clean']


def test_a_method_may_start_from_another_ones_weights(here, data):
    study = plan.load_study(
        str(
            write_study(
                here,
                data,
                FEW
                + """
methods['Twice'] = dict(first='Baseline', terms=['kd'])
seeds = [0, 1]
""",
            )
        )
    )
    runs = {(run.method, run.seed): run for run in study.students}
    for seed in (0, 1):
        twice, baseline = runs['Twice', seed], runs['Baseline', seed]
        assert twice.needs[-1] is baseline
        assert twice.config['load_from'] == (baseline.folder / 'student.pth').as_posix()
        assert baseline.part == 'student'
    assert len(study.runs) == len(set(study.runs)) == 1 + 4 * 2
    assert runs['Baseline', 1] in study.only(['*/twice/seed1'])


@pytest.mark.parametrize('wrapped', [False, True])
def test_what_is_held_out_is_scored_by_all_and_trained_on_by_none(here, data, wrapped):
    few = "networks['small']['overrides'] = dict(train_dataloader=dict(dataset=dict(dataset=dict(indices=50))))\n"
    path = write_study(here, data, 'validation = dict(size=30, seed=2)\n' + ('' if wrapped else few))
    if wrapped:  # a data set without such options of its own
        images = image_folder(here / 'images', 40)
        text = (here / 'net.py').read_text()
        for split, more in (('train', ''), ('test', ', test_mode=True')):
            text = text.replace(
                f"type='kd_plugins.CIFAR10', data_root={str(data)!r}, split={split!r}",
                f"type='CustomDataset', data_root={str(images)!r}{more}",
            )
        (here / 'net.py').write_text(text)
    for run in plan.load_study(str(path)).runs:
        train = run.config['train_dataloader']['dataset']['dataset']
        hook = run.config['default_hooks']['held_out']
        scored = hook['dataloader']['dataset']['dataset']
        assert train['validation'] == dict(size=30, seed=2)
        assert scored['validation'] == dict(size=30, seed=2, part='val')
        assert ('label_noise' in train) == (run.part != 'teacher' and run.corruption == 'sigma=0.4')
        assert 'label_noise' not in scored
        assert hook['dataloader']['sampler']['shuffle'] is False
        assert 'padding' not in hook['dataloader']['dataset']  # nothing is cropped
        assert hook['evaluator'] == [dict(type='Accuracy', topk=(1,), prefix='validation')]
        assert 'validation' not in run.config['val_dataloader']['dataset']['dataset']
        if run.method == 'Baseline' and run.seed == 0:
            with DATASETS.switch_scope_and_registry('mmpretrain'):
                infos = [[x.get_data_info(i) for i in range(len(x))] for x in map(DATASETS.build, (train, scored))]
            pictures = [{x['img_path'] if wrapped else x['img'].tobytes() for x in part} for part in infos]
            assert [len(x) for x in pictures] == ([10, 30] if wrapped else [50, 30])
            assert not pictures[0] & pictures[1]
    if wrapped:
        path.write_text(path.read_text() + few)
        with pytest.raises(UserError, match='CustomDataset has indices, with which other images would be held out'):
            plan.load_study(str(path))


def test_each_seed_may_have_a_split_of_its_own_for_teacher_and_student(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = plan.load_study('configs/studies/sp_dtd.py')
    assert len(study.teachers) == 10
    for run in study.runs:
        assert run.config['train_dataloader']['dataset']['ann_file'] == f'lists/trainval{run.seed}.txt'
        assert run.config['val_dataloader']['dataset']['ann_file'] == f'lists/test{run.seed}.txt'
        assert run.config['randomness']['seed'] == run.seed + (1000 if run.part == 'teacher' else 0)
        assert all(needed.seed == run.seed for needed in run.needs)
        assert '{seed}' not in run.text


def test_a_runs_config_is_read_as_it_was_written(here, data):
    path = write_study(here, data, "common['optim_wrapper'] = dict(clip_grad=dict(max_norm=float('inf')))\n")
    run = plan.load_study(str(path)).runs[0]
    digest = run.digest
    run.config['optim_wrapper']['optimizer']['lr'] = np.float32(0.25)
    run.config['work_dir'] = Path('a/b')
    (here / 'written.py').write_text(run.text)
    written = Config.fromfile(str(here / 'written.py'))
    assert written.optim_wrapper.clip_grad.max_norm == math.inf
    assert type(written.optim_wrapper.optimizer.lr) is float
    assert (written.optim_wrapper.optimizer.lr, written.work_dir) == (0.25, 'a/b')
    assert run.digest != digest


def test_one_teacher_for_all_splits_is_refused(here, data):
    path = write_study(
        here,
        data,
        """
teachers['big']['overrides'] = dict(train_dataloader=dict(dataset=dict(dataset=dict(data_root='split{seed}'))))
""",
    )
    message = r"'\{seed\}' is in the config of network 'small' or of its teacher 'big'.*teacher_seeds='each'"
    with pytest.raises(UserError, match=message):
        plan.load_study(str(path))
    path.write_text(path.read_text() + "teacher_seeds = 'each'\n")
    with pytest.raises(UserError, match=message):
        plan.load_study(str(path))
    path.write_text(path.read_text() + "networks['small']['overrides'] = teachers['big']['overrides']\n")
    roots = {
        run.seed: run.config['train_dataloader']['dataset']['dataset']['data_root']
        for run in plan.load_study(str(path)).teachers
    }
    assert roots == {0: 'split0', 1: 'split1'}


def test_the_checks_leave_the_runs_as_they_are(here, data):
    """mmpretrain's classifiers write into the config that they are built from; --table would take a run for changed."""
    study = plan.load_study(str(write_study(here, data, FEW)))
    digests = [run.digest for run in study.runs]
    check_runs(study)
    assert [run.digest for run in study.runs] == digests


def test_the_seed_is_filled_in_whatever_makes_a_students_config(here, data):
    more = """
teachers = dict(big=dict(given=dict(config='net.py', checkpoint='x/seed{seed}.pth')))
methods = dict(All=dict(
    terms=[dict(name='x', loss=dict(type='kd_plugins.KDLoss', note='{seed}'), student='head.fc', teacher='head.fc')],
    hook=dict(task='{seed}'), wrap=dict(type='W', note='{seed}'), overrides=dict(note='{seed}')))
seeds = [3, 4]
corruptions = dict(clean=dict())
"""
    path = write_study(here, data, more)
    for run in plan.load_study(str(path)).students:
        seed, hook = str(run.seed), run.config['custom_hooks'][-1]
        assert hook['teacher']['checkpoint'] == f'x/seed{seed}.pth'
        assert hook['terms'][0]['loss']['note'] == hook['task'] == seed
        assert run.config['model']['note'] == run.config['note'] == seed
        assert '{seed}' not in run.text


def test_none_stands_for_no_hooks_and_no_options(here, data):
    """As in a config that is trained by itself."""
    more = """
methods['Searched'] = dict(terms=['kd'], search=dict(weight=[0.1, 0.3]))
validation = dict(size=30)
common = dict(custom_hooks=None, default_hooks=None, randomness=None)
"""
    study = plan.load_study(str(write_study(here, data, FEW + more)))
    check_runs(study)
    found = {
        (run.method, run.part): (
            [hook['type'] for hook in run.config['custom_hooks'] or []],
            [*run.config['default_hooks']],
            run.config['randomness'],
        )
        for run in study.runs
    }
    terms = ['kd_plugins.DistillationHook']
    assert found['teacher', 'teacher'] == ([], ['held_out'], dict(seed=1000))
    assert found['Baseline', 'student'] == ([], ['held_out'], dict(seed=0))
    assert found['KD', 'student'] == (terms, ['held_out'], dict(seed=0))
    assert found['Searched', 'search'] == (terms, ['checkpoint'], dict(seed=2000))
    assert all(compile(run.text, run.name, 'exec') for run in study.runs)


def test_a_study_of_detectors_is_checked(monkeypatch):
    """mmdet's models read their config dicts by attributes."""
    pytest.importorskip('mmdet')
    monkeypatch.chdir(ROOT)
    study = plan.load_study('configs/studies/voc_sample.py')
    check_runs(study)
    study.students[0].config['model']['backbone']['depth'] = 17
    with pytest.raises(KeyError, match='invalid depth 17'):
        check_runs(study)


@pytest.mark.parametrize(('name', 'seeds'), [('voc_sample', 3), ('voc_sample_probe', 5)])
def test_detectors_and_probes_start_from_the_students_that_the_other_studies_leave(name, seeds, monkeypatch):
    monkeypatch.chdir(ROOT)
    studies = {name: plan.load_study(f'configs/studies/{name}.py') for name in ('pretrain', 'pretrain_labelled')}
    left = {(run.folder / 'student.pth').as_posix() for study in studies.values() for run in study.students}
    taken = {
        init['checkpoint']
        for run in plan.load_study(f'configs/studies/{name}.py').students
        if (init := run.config['model']['backbone']['init_cfg']) and run.method != 'The teacher as backbone'
    }
    assert len(taken) == 10 * seeds  # ten students
    assert {path for path in taken if int(re.search(r'seed(\d)', path)[1]) < 3 or 'labelled' in path} <= left


def test_the_probes_command_names_the_runs_whose_students_are_trained_and_no_others(monkeypatch):
    monkeypatch.chdir(ROOT)
    path = 'configs/studies/voc_sample_probe.py'
    commands = [
        re.search(r'voc_sample_probe.py \\\n.*--only (.*)', Path(x).read_text())[1]
        for x in (path, 'configs/pretrain/README.md')
    ]
    assert commands[0] == commands[1]
    study = plan.load_study(path)
    left = {
        (run.folder / 'student.pth').as_posix()
        for name in ('pretrain', 'pretrain_labelled')
        for run in plan.load_study(f'configs/studies/{name}.py').students
    }

    def starts(run):
        init = run.config['model']['backbone']['init_cfg']
        return init is None or run.method == 'The teacher as backbone' or init['checkpoint'] in left

    chosen = study.only(shlex.split(commands[0]))
    assert chosen == [run for run in study.runs if starts(run)]
    assert len(chosen) == 6 * 5 + 6 * 3  # six methods without labels


def test_only_names_what_exists(here, data):
    with pytest.raises(UserError, match='no run matches nothing; runs are named as small/clean/baseline/seed0'):
        plan.load_study(str(write_study(here, data))).only(['nothing'])


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/studies').glob('*.py')), ids=lambda path: path.stem)
def test_shipped_studies_spell_out(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = plan.load_study(str(path))
    options = study.options
    assert len(study.students) == len(options['networks']) * len(options['methods']) * len(
        options['corruptions']
    ) * len(options['seeds'])
    assert [run.problem for run in study.runs if run.problem] == []
    published = report.references(study)
    known = {
        (n, c, m) for n in options['networks'] for c in options['corruptions'] for m in [*options['methods'], 'Teacher']
    }
    assert not options['references'] or known & published.keys()
    if 'quick' not in path.stem and 'cifar10' not in path.stem.split('_')[0]:  # the papers' own, whole
        assert published.keys() <= known
    for run in {(x.network, x.method): x for x in study.runs}.values():  # the texts are configs
        namespace = {}
        exec(run.text, {}, namespace)
        assert namespace['train_cfg']['max_epochs'] > 0
        assert ('teachers' in run.folder.parts) == (run.part == 'teacher')
        if 'quick' in path.stem:  # a laptop's share: few images, and the teacher asked once for all seeds
            data, hooks = run.config['train_dataloader'], run.config.get('custom_hooks', [])
            wide = 'WideResNet' in str(run.config['model'])
            few = (12000 if wide else 30000) if run.part == 'teacher' else 1600 if wide else 8000
            images = data['dataset']['dataset']['indices'] or 0  # all where few are left
            assert images <= few
            assert images * namespace['train_cfg']['max_epochs'] <= 160000
            assert run.part == 'teacher' or data['dataset']['seed'] == 0
            assert all(hook['teacher']['cache'] for hook in hooks)
            assert all(
                term['loss']['attack_size'] == 16 for hook in hooks for term in hook['terms'] if term['name'] == 'bss'
            )
    raw = {'backbone.stem', 'backbone.stage1', 'backbone.stage2', 'backbone.stage3'}
    for run in study.runs:  # on a WRN these are sums of no fixed size, on which the two losses diverge
        if run.config['model'].get('backbone', {}).get('type') != 'kd_plugins.WideResNet':
            continue
        for term in (term for hook in run.config.get('custom_hooks', []) for term in hook.get('terms', [])):
            if term['loss']['type'] in ('kd_plugins.FitNetLoss', 'kd_plugins.FSPLoss'):
                assert not raw & {*np.ravel([term['student'], term['teacher']])}
    os.fspath(study.root)


def test_a_dash_in_a_published_table_stands_for_no_value(monkeypatch):
    monkeypatch.chdir(ROOT)
    published = report.references(plan.load_study('configs/studies/canonical_cifar100.py'))
    assert published['ResNet-56/20', 'clean', 'KD'] == '70.66'
    assert published['ResNet-56/20', 'clean', 'DIST'] == '71.75 ± 0.30'
    assert ('ResNet-110/32', 'clean', 'DIST') not in published


@pytest.mark.parametrize('name', ['noise', 'imbalance', 'table3', 'table4'])
def test_the_posters_studies_follow_its_authors_library(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for run in plan.load_study(f'configs/studies/poster_{name}.py').runs:
        assert run.config['optim_wrapper']['optimizer']['nesterov'] is False
        model = run.config['model']
        if run.method == 'ONE':
            wide = model['student']['backbone']['type'] == 'kd_plugins.WideResNet'
            assert model.get('tied') == (['backbone.norm'] if wide else None)
        if run.method.startswith('RKD'):
            (hook,) = run.config['custom_hooks']
            for term in hook['terms']:
                assert (term['loss']['convention'], term['loss']['normalize']) == ('code', True)


def test_a_networks_own_terms_go_before_the_studys(here, data):
    (here / 'own.py').write_text("methods = dict(kd=[dict(name='own')])")
    path = write_study(here, data, FEW + "networks['other'] = dict(networks['small'], terms_from='own.py')\n")
    terms = {
        (run.network, run.method): run.config['custom_hooks'][-1]['terms']
        for run in plan.load_study(str(path)).students
        if run.method == 'KD'
    }
    assert [term['name'] for term in terms['small', 'KD']] == ['kd']
    assert terms['small', 'KD'][0]['loss']['type'] == 'kd_plugins.KDLoss'
    assert terms['other', 'KD'] == [dict(name='own')]
    problems = {(run.network, run.method): run.problem for run in plan.load_study(str(path)).students}
    assert problems['other', 'AT'] == "own.py has no terms 'kd_alpha': it has kd"
    assert not problems['small', 'AT']


@pytest.mark.parametrize(
    'overrides',
    [
        dict(model=dict(head=dict(loss=dict(class_weight=[1.0] * 10)))),
        dict(train_dataloader=dict(batch_sampler=None)),
        dict(default_hooks=dict(logger2=dict(type='LoggerHook'), ema=dict(type='EMAHook'))),
        dict(auto_scale_lr=dict()),
        dict(model=dict(backbone=dict(_delete_=True, type='ResNet', dept=18))),
        dict(model=dict(backbone=dict(type='ResNet', dept=18))),
        dict(custom_hooks=[]),
        dict(test_cfg=dict()),
        {'optim_wrapper.optimizer.lr': 0.2},
        dict(
            optim_wrapper=dict(
                clip_grad=dict(max_norm=1.0),
                paramwise_cfg=dict(
                    custom_keys={'backbone.stage1': dict(lr_mult=1), 'backbone.stage2': dict(lr_mult=2)}
                ),
            )
        ),
    ],
)
def test_new_keys_are_no_mistakes(here, data, overrides):
    path = write_study(here, data, f'common = {overrides!r}\n')
    assert plan.load_study(str(path)).runs


def test_a_method_leaves_its_answers_out_of_the_cache(here, data):
    path = write_study(
        here,
        data,
        FEW
        + """
teacher_cache = True
methods['Without'] = dict(terms=['kd'], teacher_cache=False)
""",
    )
    cached = {
        run.method: 'cache' in hook['teacher']
        for run in plan.load_study(str(path)).students
        for hook in run.config.get('custom_hooks', [])
    }
    assert cached == {'KD': True, 'AT': True, 'Without': False}


def test_a_network_whose_config_holds_classes(here, data):
    """As configs by ``read_base`` do: the runs' files name them, and they are corrupted as those with names are."""
    path = write_study(here, data, "networks = dict(small=dict(config='lazy.py'))\nmethods = {'Baseline': dict()}\n")
    (here / 'lazy.py').write_text(f"""
from mmengine.dataset import DefaultSampler
from mmpretrain.models import ImageClassifier
from kd_plugins.datasets import CIFAR10
model = dict(type=ImageClassifier, head=dict(num_classes=10))
train_dataloader = dict(batch_size=8, sampler=dict(type=DefaultSampler, shuffle=True), dataset=dict(
    type=CIFAR10, data_root={str(data)!r}, split='train'))
""")
    noisy = next(run for run in plan.load_study(str(path)).students if run.corruption == 'sigma=0.4')
    (here / 'run.py').write_text(noisy.text)
    config = Config.fromfile(here / 'run.py')
    assert config.model.type == 'mmpretrain.models.ImageClassifier'
    dataset = config.train_dataloader.dataset
    assert (dataset.type, dataset.label_noise) == ('kd_plugins.datasets.CIFAR10', dict(rate=0.4))
    with DATASETS.switch_scope_and_registry(None) as registry:
        assert registry.build(dataset).corruption['label_noise']['rate'] == 0.4
