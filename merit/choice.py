"""Experiments that are named on the command line, and their place in params.yaml.

What decides a result is visible to DVC: an experiment runs because params.yaml names it, so that is
where `merit repro NAME` puts it. The text is edited and not rewritten: comments stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from merit.config import EXPERIMENTS_DIR, PARAMS_FILE, REHEARSAL, load_experiment, load_params
from merit.errors import MeritError
from merit.io.artifacts import atomic_write


def chosen(names: Sequence[str], rehearse: bool, folder: Path = EXPERIMENTS_DIR) -> list[str]:
    """The names as params.yaml has them: with `rehearse` of their rehearsals.

    Raises MeritError for an experiment that there is not (with the nearest name) or whose file has
    mistakes, and for a part of one.
    """
    found = []
    for name in dict.fromkeys(names):
        whole = f"{name.removesuffix(REHEARSAL)}{REHEARSAL}" if rehearse else name
        load_experiment(whole, folder)
        found.append(whole)
    return list(dict.fromkeys(found))


def put_in(names: Sequence[str], path: Path = PARAMS_FILE) -> list[str]:
    """Name the experiments in params.yaml; returns those that it did not name before."""
    absent = [name for name in names if name not in load_params(path).experiments]
    if absent:
        text = path.read_text(encoding="utf-8")
        _write(path, with_names(text, absent), [*_names(text), *absent])
    return absent


def take_out(names: Sequence[str], path: Path = PARAMS_FILE) -> None:
    """The reverse; the last experiment stays, since params.yaml names at least one."""
    for name in names:
        text = path.read_text(encoding="utf-8")
        known = _names(text)
        if len(known) > 1 and name in known:
            _write(path, without_name(text, name), [other for other in known if other != name])


def with_names(text: str, names: Sequence[str]) -> str:
    """params.yaml's text with `names` behind the others of `experiments`."""
    experiments = _sequence(text)
    last = experiments.value[-1]
    if experiments.flow_style:
        end = last.end_mark.index
        return text[:end] + "".join(f", {name}" for name in names) + text[end:]
    dash = text[_line(text, last.start_mark.index) : last.start_mark.index]
    end = text.find("\n", last.end_mark.index)
    end = len(text) if end < 0 else end
    return text[:end] + "".join(f"\n{dash}{name}" for name in names) + text[end:]


def without_name(text: str, name: str) -> str:
    """params.yaml's text without this one, which is not the only one."""
    experiments = _sequence(text)
    items = experiments.value
    i = [item.value for item in items].index(name)
    if not experiments.flow_style:
        start, end = (
            _line(text, items[i].start_mark.index),
            text.find("\n", items[i].end_mark.index),
        )
        return text[:start] + ("" if end < 0 else text[end + 1 :])
    if i:
        return text[: items[i - 1].end_mark.index] + text[items[i].end_mark.index :]
    return text[: items[0].start_mark.index] + text[items[1].start_mark.index :]


def _write(path: Path, text: str, expected: Sequence[str]) -> None:
    """Raises MeritError where the edited text does not say what it should."""
    try:
        right = _names(text) == list(expected)
    except (yaml.YAMLError, KeyError):
        right = False
    if not right:
        raise MeritError(
            f"{path}: key `experiments`: cannot be edited as it is written; set it to "
            f"[{', '.join(expected)}]"
        )
    atomic_write(path, text)


def _names(text: str) -> list[str]:
    return list(yaml.safe_load(text)["experiments"])


def _sequence(text: str) -> yaml.SequenceNode:
    """The value of `experiments`, with its place in the text. It has been checked before."""
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    return next(value for key, value in root.value if key.value == "experiments")


def _line(text: str, index: int) -> int:
    """Where the line of this character begins."""
    return text.rfind("\n", 0, index) + 1
