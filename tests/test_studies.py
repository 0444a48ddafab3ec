"""The registry of studies: settings, and sentences and figures of committed results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from merit.errors import MeritError
from merit.eval.report.study_sections import sentences
from merit.eval.report.style import save, styled
from merit.eval.studies import STUDIES, draw_of, measure_of, settings_of
from merit.eval.studies.held_out.draw import by_task
from merit.io.artifacts import read_json
from tests import synthetic

REPORTS = Path(__file__).parents[1] / "reports" / "studies"
# one committed result of each study
RESULTS = {path.parent.name: path for path in sorted(REPORTS.glob("*/*/result.json"))}


def test_settings_are_read_in_the_order_of_the_pages() -> None:
    blocks = {"cost": {}, "gain": None, "readiness": {"num_points": 3}}
    found = settings_of(synthetic.experiment(studies=blocks))
    assert list(found) == ["readiness", "cost"]
    assert found["readiness"] == STUDIES["readiness"].model_validate({"num_points": 3})


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"readines": {}}, r"unknown key `studies\.readines`\. Did you mean `readiness`\?"),
        ({"cost": {"jont": "a"}}, r"unknown key `studies\.cost\.jont`\. Did you mean `joint`\?"),
        ({"cost": {"joint": 3}}, r"key `studies\.cost\.joint`: found 3"),
        ({"weights": {}}, r"key `studies\.weights\.methods` is missing"),
        ({"calibration": {"sizes": [5000]}}, r"`sizes` must lie below `reference`, 1000: found"),
    ],
)
def test_a_wrong_block_names_the_file_and_the_key(blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(MeritError, match=rf"^experiments/synthetic\.yaml: .*{message}"):
        settings_of(synthetic.experiment(studies=blocks))


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_a_whole_folder(name: str) -> None:
    assert callable(measure_of(name))
    assert STUDIES[name].timed or callable(draw_of(name))


@pytest.mark.parametrize("name", [name for name in STUDIES if name in RESULTS])
def test_a_committed_result_is_worded_and_drawn(name: str, tmp_path: Path) -> None:
    stored = read_json(RESULTS[name])
    assert sentences(name, stored).endswith(".")
    drawn(name, stored, tmp_path)


def test_held_out_losses_are_drawn_against_the_base(tmp_path: Path) -> None:
    models = [{"method": name, "model": f"{name}-s1"} for name in ("base", "joint", "merit")]
    tasks = [
        {"task": f"t{i}", "base-s1": 2.0, "joint-s1": 2.0 - i, "merit-s1": 1.5} for i in range(3)
    ]
    path = [
        {"method": "joint", "partition": "joint", "c": c, "distance": 2 * c, "loss": 2 - c}
        for c in (0.5, 1.0)
    ]
    tables = {"held_out_models": models, "held_out_tasks": tasks, "held_out_path": path}
    result = {"tables": tables, "summary": {"recommendation": {"method": "joint", "c": 0.5}}}
    distance = drawn("held_out", result, tmp_path, ("png", "pdf", "svg")).axes[0]
    line, star = distance.lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1.0, 2.0], [1.5, 1.0])
    assert (star.get_xdata(), star.get_marker()) == ([1.0], "*")
    axes = by_task(result).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["joint", "merit"]
    assert axes.lines[0].get_xdata().tolist() == [0.0, -1.0, -2.0]  # joint's tasks, then its mean
    assert axes.lines[1].get_xdata().tolist() == [-1.0]


def test_retention_is_drawn_with_intervals(tmp_path: Path) -> None:
    rows = [
        {"model": "base", "loss": 1.0, "loss_low": 0.8, "loss_high": 1.2, "words": 3.0},
        {"model": "a", "loss": 2.0, "loss_low": 1.5, "loss_high": 2.5, "words": 1.5},
    ]
    answers = [{"base": "one two three", "a": word} for word in ("one", "one two")]
    tables = {"retention": rows, "answers": answers}
    loss, words = drawn("retention", {"tables": tables}, tmp_path).axes
    bars = [bar.get_segments()[0][:, 0].tolist() for bar in loss.collections]
    assert bars == [pytest.approx([0.8, 1.2]), pytest.approx([1.5, 2.5])]
    low, high = words.collections[1].get_segments()[0][:, 0]
    assert (low + high) / 2 == pytest.approx(1.5)
    assert high - low == pytest.approx(2 * 12.7062 * 0.5)  # t(0.975, 1) std / sqrt(2)


def drawn(study: str, result: dict[str, Any], folder: Path, kinds: Sequence[str] = ("png",)) -> Any:
    """The study's last figure; all are written, without metadata."""
    with styled():
        figures = draw_of(study)(result)
    for kind in kinds:
        save(figures, folder, kind)
        for name in figures:
            content = (folder / f"{name}.{kind}").read_bytes()
            assert not re.search(rb"CreationDate|<dc:date>|Matplotlib v|tEXt", content)
    return list(figures.values())[-1]
