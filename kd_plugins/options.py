"""Options of the command lines: those that several have, and checks."""

import argparse
import ast
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from mmengine.config import DictAction

from kd_plugins.errors import UserError


def add_run_options(parser: argparse.ArgumentParser, holds: str) -> None:
    """Add the options of a command that runs a config, and defaults of those that not every such command has.

    Args:
        parser: The command's.
        holds: What the run's folder holds, for the help.
    """
    parser.set_defaults(launcher='none', skip_corrupt=False, amp=False)
    parser.add_argument('--work-dir', help=f'folder of {holds} (default: work_dirs/<config>)')
    parser.add_argument('--allow-pickle', action='store_true', help='run the code in pickled checkpoints you trust')
    parser.add_argument('--cfg-options', nargs='+', action=KeyValues, metavar='KEY=VALUE', help='override the config')


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that several processes can run together."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_watch(parser: argparse.ArgumentParser, backends: Iterable[str]) -> None:
    """Add the option of a command that trains and can log what each term contributes.

    Args:
        parser: The command's.
        backends: Names of the visual back-ends to choose from.
    """
    parser.add_argument(
        '--watch',
        nargs='*',
        choices=[*backends],
        metavar='BACKEND',
        help='log the raw loss, weight and share of each term, and the time of the teacher; to tensorboard, wandb or '
        'mlflow too, where named',
    )


def check_least(args: argparse.Namespace, **least: float) -> None:
    """Check numbers that have a least value; an option that is not given is None or missing.

    Raises:
        UserError: A number is less, or NaN.
    """
    for name, value in least.items():
        given = getattr(args, name, None)
        if given is not None and not given >= value:
            raise UserError(f'--{name.replace("_", "-")}: expected at least {value}, got {given}')


def check_device(device: str | None) -> None:
    """Check the name of a device.

    Raises:
        UserError: It names neither a CPU nor an existing GPU.
    """
    if device is None:
        return
    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ('cpu', 'cuda'):
        raise UserError(f"--device: expected 'cpu' or 'cuda', got '{device}'")
    if kind.type == 'cuda' and (kind.index or 0) >= torch.cuda.device_count():
        raise UserError(f'--device {device}: torch finds no such GPU here; leave the option out, or take --device cpu')


def _literal(text: str) -> Any:
    """Return a value as Python writes it: texts, numbers, lists, and dicts by braces or ``dict(...)``.

    Raises:
        ValueError: It is none.
        SyntaxError: Likewise.
    """

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
            if any(x.arg is None for x in node.keywords):
                raise ValueError('** has no name')
            return {str(x.arg): value(x.value) for x in node.keywords}
        if isinstance(node, ast.Dict) and None not in node.keys:
            return {value(k): value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
        if isinstance(node, (ast.List, ast.Tuple)):
            items = [value(x) for x in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        return ast.literal_eval(node)

    return value(ast.parse(text.strip(), mode='eval').body)


class KeyValues(DictAction):
    """mmengine's ``KEY=VALUE ...``, with an error that names a value of another form.

    Unlike mmengine's it keeps the spaces of a text, takes a text in quotes as it is, with its commas, also in a list,
    and reads dicts, ``{'at': [0, 60]}`` or ``dict(at=[0, 60])``.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if len(val) > 1 and val[0] == val[-1] and val[0] in '\'"' and val[0] not in val[1:-1]:
            return val[1:-1]
        if val.startswith('{') and not val.endswith('}') and ',' not in val:
            return val  # the form of a name, as {}.pth
        if val.startswith(('{', 'dict(')):
            return _literal(val)
        if val[:1] in ('[', '(') and ('"' in val or "'" in val or '=' in val):
            with suppress(ValueError, SyntaxError):  # not all texts in it are in quotes
                return _literal(val)
        if any(x in val for x in ',[](){}'):
            return DictAction._parse_iterable(val)
        return DictAction._parse_int_float_bool(val)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Any = None,
    ) -> None:
        """Read the values."""
        for text in values:
            key, sign, _ = text.partition('=')
            try:
                if not key or not sign:
                    raise ValueError('no key, or no =')
                super().__call__(parser, argparse.Namespace(), [text], option_string)
            except (ValueError, SyntaxError, AssertionError, IndexError, RecursionError) as error:
                parser.error(f"{option_string}: expected KEY=VALUE, got '{text}' ({error})")
        super().__call__(parser, namespace, values, option_string)
