"""The registry of studies: settings, and sentences and figures of committed results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merit.errors import MeritError
from merit.eval.report.study_sections import sentences
from merit.eval.studies import STUDIES, draw_of, measure_of, settings_of
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
    assert callable(draw_of(name))


@pytest.mark.parametrize("name", [name for name in STUDIES if name in RESULTS])
def test_a_committed_result_is_worded_and_drawn(name: str, tmp_path: Path) -> None:
    stored = read_json(RESULTS[name])
    assert sentences(name, stored).endswith(".")
    draw_of(name)(stored, tmp_path)
    made = {file.name for file in (tmp_path / "figures").iterdir()}
    stems = {Path(file).stem for file in made}
    assert made == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")} != set()
