"""The claims ledger: the verdict rule by hand, every rule on scores, every study's claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merit.errors import MeritError
from merit.eval.report import study_sections
from merit.eval.report.claims import CLAIMS_FILE, Case, load_claims
from merit.eval.report.comparison import compare
from merit.eval.report.ledger import RULES, claims, counts, ledger, readiness, write_ledger
from merit.eval.report.rules import growth
from merit.eval.report.study_sections import StudyResult, load_studies, studies_part
from merit.eval.results import Results
from merit.eval.studies import STUDIES
from merit.eval.verdict import OUTSIDE, Evidence, Link
from merit.io.artifacts import read_json, write_json
from tests import synthetic

BASE_HASH = "b" * 64
METHODS = ("base", "joint-1ep", "random-2", "random-8", "merit-1d", "merit-3d", "joint-shrunk")
BENCHMARKS = ("mini_scene", "mini_describe")  # one of choice, one open-ended

# every question of a benchmark has the same score, so intervals have no width
SCORES: dict[str, tuple[float, float]] = {
    "base": (0.5, 0.5),
    "joint-1ep": (0.625, 0.125),  # average 37.5
    "random-2": (0.5, 0.25),  # 37.5
    "random-8": (0.5, 0.25),  # 37.5
    "merit-1d": (0.5, 0.375),  # 43.75
    "merit-3d": (0.625, 0.375),  # 50
    "joint-shrunk": (0.75, 0.375),  # 56.25
}


def make_results(scores: dict[str, tuple[float, float]] = SCORES, num: int = 4) -> Results:
    """Two seeds of every method but the base, `num` questions a benchmark."""
    rows = {m: 1 if m == "base" else 2 for m in scores}
    return Results(
        benchmarks=BENCHMARKS,
        open_ended=("mini_describe",),
        num_questions=dict.fromkeys(BENCHMARKS, num),
        seeds={m: () if m == "base" else (1, 2) for m in scores},
        scores={m: np.full((rows[m], 2), 100.0) * np.array(s) for m, s in scores.items()},
        answers={m: [np.full((rows[m], num), value) for value in s] for m, s in scores.items()},
    )


def make_case(studies: dict[str, StudyResult] | None = None) -> Case:
    experiment = synthetic.experiment(seeds=(1, 2), methods=METHODS, benchmarks=BENCHMARKS)
    return Case(experiment, {"synthetic": make_results()}, studies or {}, BASE_HASH)


def study(
    name: str, summary: dict[str, Any], tables: dict[str, Any] | None = None, base: str = BASE_HASH
) -> StudyResult:
    path = f"../studies/synthetic/{name}"
    return StudyResult(
        name=name,
        title=STUDIES[name].title,
        text="Said.",
        summary=summary,
        tables=tables or {},
        figures=(),
        path=path,
        drawn=f"studies/{name}/figures",
        base_hash=base,
    )


def verdicts(case: Case) -> dict[str, str]:
    return {record["id"]: record["verdict"] for record in ledger(case)}


# --- the rule -----------------------------------------------------------------------------------


HOLDS, NOT, OPEN = "holds", "fails", "undecided"


@pytest.mark.parametrize(
    ("low", "high", "options", "expected"),
    [
        (0.1, 2.0, {}, HOLDS),
        (0.0, 2.0, {}, OPEN),
        (-2.0, 0.0, {}, OPEN),
        (-2.0, -0.1, {}, NOT),
        (-2.0, -0.1, {"side": "below"}, HOLDS),
        (0.1, 2.0, {"side": "below"}, NOT),
        (-1.0, 2.0, {"side": "below"}, OPEN),
        # no worse than by a margin of 1
        (-0.9, -0.1, {"bound": -1.0, "refuted": 0.0}, HOLDS),  # worse, but by less
        (-1.5, -0.1, {"bound": -1.0, "refuted": 0.0}, NOT),  # worse, perhaps by more
        (-1.5, 0.5, {"bound": -1.0, "refuted": 0.0}, OPEN),
        # without an interval the value decides, strictly
        (None, None, {"value": 1.01, "bound": 1.0}, HOLDS),
        (None, None, {"value": 1.0, "bound": 1.0}, NOT),
        (None, None, {"value": 0.4, "bound": 0.5, "side": "below"}, HOLDS),
    ],
)
def test_an_interval_decides(low: Any, high: Any, options: dict[str, Any], expected: str) -> None:
    link = Link("x", n=10, low=low, high=high, **{"value": 0.0, **options})
    assert link.verdict == expected


def test_a_chain_needs_all_its_links() -> None:
    good = Link("good", 3.0, 1, 2.0, 4.0)
    better = Link("better", 5.0, 1, 4.0, 6.0)
    open_ = Link("open", 0.5, 1, -1.0, 2.0)
    bad = Link("bad", -1.0, 1, -2.0, -0.5)
    assert Evidence([better, good], "t").verdict == "holds"
    assert Evidence([better, good], "t").deciding == good  # the weakest
    assert Evidence([good, open_], "t").verdict == "undecided"
    assert Evidence([good, open_], "t").deciding == open_
    assert Evidence([good, open_, bad], "t").verdict == "fails"
    assert Evidence([good, open_, bad], "t").deciding == bad


# --- the records --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("margin: 1", "margin: one", ["`claims.1.margin`"]),
        ("margin: 1", "margins: 1", ["`claims.1.margins`"]),
        ("rule: largest", "rule: big", ["C7", "'big'"]),
        ("{margin:g}", "{slack:g}", ["C2", "'slack'"]),
        ("id: C3", "id: C2", ["C2"]),
        ("table: table21", "# table: table21", ["`claims.13`"]),
    ],
)
def test_a_wrong_record_is_refused(tmp_path: Path, old: str, new: str, named: list[str]) -> None:
    text = CLAIMS_FILE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "claims.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(MeritError) as caught:
        load_claims(RULES, path)
    assert [part for part in ["claims.yaml", *named] if part not in str(caught.value)] == []


# --- scores -------------------------------------------------------------------------------------


def test_ledger_from_scores() -> None:
    records = {record["id"]: record for record in ledger(make_case())}
    assert list(records) == [f"C{i}" for i in range(1, 26) if i != 20]
    assert list(claims()) == list(records)
    c1 = records["C1"]  # 50 against 37.5
    assert (c1["value"], c1["low"], c1["high"], c1["n"]) == (12.5, 12.5, 12.5, 8)
    assert c1["verdict"] == "holds"
    assert c1["table"] == "table02.csv"
    assert c1["note"] == "ahead on 2 of 2 common seeds"
    # exactly no difference: inside the margin
    assert (records["C2"]["verdict"], records["C2"]["value"]) == ("holds", 0.0)
    # 43.75 and 50 against 37.5, so the advantage grows by 6.25
    assert [link["value"] for link in records["C4"]["links"]] == [6.25, 12.5, 6.25]
    assert records["C4"]["verdict"] == "holds"
    # open-ended: base 50, joint 12.5, merit 37.5
    assert [link["value"] for link in records["C17"]["links"]] == [37.5, 25.0, 12.5]
    assert (records["C17"]["verdict"], records["C17"]["n"]) == ("holds", 4)
    assert (records["C21"]["verdict"], records["C21"]["value"]) == ("fails", -6.25)


def test_what_was_not_run_is_not_testable() -> None:
    records = {record["id"]: record for record in ledger(make_case())}
    absent = [i for i, r in records.items() if r["verdict"] == "not tested"]
    assert absent == ["C3", *(f"C{i}" for i in range(5, 17)), "C19", "C22"]
    assert "`connectivity`" in records["C7"]["note"]
    clock = records["C18"]
    assert (clock["verdict"], clock["value"], clock["links"]) == (OUTSIDE, None, [])
    assert "artifacts/<experiment>/timings/cost/" in clock["note"]
    assert (records["C5"]["value"], records["C5"]["links"]) == (None, [])


def test_open_ended_answers_lost_by_more_than_half_are_not_kept() -> None:
    case = make_case()
    scores = SCORES | {"merit-3d": (0.625, 0.25)}  # 50 -> 25, joint 50 -> 12.5
    record = {r["id"]: r for r in ledger(replace(case, bases={"x": make_results(scores)}))}
    links = record["C17"]["links"]
    assert [link["verdict"] for link in links] == ["holds", "holds", "fails"]
    assert record["C17"]["verdict"] == "fails"
    assert record["C17"]["value"] == -12.5  # (25 - 12.5) - (50 - 25)


def test_growth_draws_a_method_once_although_it_stands_twice() -> None:
    # (main - joint) - (base - main): the seeds of main differ by 0.2, so it moves by twice that
    case = make_case()
    results = make_results()
    for b in range(2):
        results.answers["merit-3d"][b][0] = 0.4
        results.answers["merit-3d"][b][1] = 0.6
    moved = replace(case, bases={"x": results})
    link = growth(moved, ("merit-3d", "joint-1ep"), ("base", "merit-3d"))
    half = 2 * 10 * 2**0.5  # two seeds: 0.1 sqrt(2) to either side, in points
    assert link.low is not None
    assert link.high is not None
    assert (link.low, link.high) == pytest.approx((link.value - half, link.value + half))


def test_common_seeds_are_drawn_together_and_others_apart() -> None:
    results = make_results()
    for method, shift in (("merit-3d", 0.1), ("joint-1ep", 0.0)):
        for b in range(2):
            results.answers[method][b][0] = 0.2 + shift
            results.answers[method][b][1] = 0.6 + shift
    together = compare(results, "merit-3d", "joint-1ep")
    assert (together.low, together.high) == pytest.approx((10.0, 10.0))
    results.seeds["joint-1ep"] = (3, 4)
    apart = compare(results, "merit-3d", "joint-1ep")
    assert apart.low < 0 < apart.high


# --- studies ------------------------------------------------------------------------------------


def epochs_study(gaps: tuple[float, float], ratios: tuple[float, float]) -> StudyResult:
    rows = [
        {
            "epoch": epoch,
            "displacement_ratio": ratio,
            "train_loss_gap": gap,
            "train_loss_gap_se": 0.1,
            "flatness_auc_gap": 0.5,
            "flatness_auc_gap_std": 0.2,
        }
        for epoch, gap, ratio in zip((1.0, 2.0), gaps, ratios, strict=True)
    ]
    tables = {"table01_merge_readiness": rows}
    return study("epochs", {"num_draws": 4, "num_examples": 64}, tables)


def decide(name: str, result: StudyResult) -> dict[str, Any]:
    """The record of the claim of this id."""
    case = make_case({result.name: result})
    return next(r for r in ledger(case) if r["id"] == name)


def test_epochs_decide_distance_loss_and_flatness() -> None:
    found = epochs_study((0.3, 0.1), (2.0, 3.0))
    closer = decide("C8", found)
    assert closer["verdict"] == "holds"
    assert [link["value"] for link in closer["links"]] == [2.0, 3.0, 1.0]
    assert closer["table"] == "../studies/synthetic/epochs/table01_merge_readiness.csv"
    assert decide("C8", epochs_study((0.3, 0.3), (3.0, 2.0)))["verdict"] == ("fails")
    loss = decide("C9", found)
    # 0.1 - 1.96 * 0.1 < 0: the second epoch leaves it open, although the score is better
    assert [link["verdict"] for link in loss["links"]] == ["holds", "undecided", "holds"]
    assert loss["verdict"] == "undecided"
    assert loss["low"] == pytest.approx(0.1 - 0.196)
    flat = decide("C10", found)
    assert flat["verdict"] == "holds"
    assert flat["low"] == pytest.approx(0.5 - 1.96 * 0.2 / 2)  # four draws


CONNECTIVITY = {
    "table05_linear_mode_connectivity": [
        {"path": "b0-b1", "barrier_share": 0.0},
        {"path": "b0-merged", "barrier_share": 0.02},
    ]
}
FIDELITY = {
    "table16_stride5_fidelity": [
        {"metric": "pearson", "value": 0.99, "std_error": 0.001},
        {"metric": "spearman", "value": 0.985, "std_error": 0.001},
    ]
}
NORMS = {
    "table19_gradient_norms": [
        {"metric": "coefficient_of_variation", "raw": 0.9, "trimmed_5pct": 0.7}
        | {"trimmed_10pct": 0.6}
    ]
}
MERGERS = {
    "table12_posthoc_merging_7b": [
        {"merge": name, "tuning": "default", "difference": -2.0}
        | {"difference_low": -3.0, "difference_high": high, "num_questions": 100}
        for name, high in {"ties": -1.0, "star": -1.0, "tsv": -1.0, "iso-cts": 0.5}.items()
    ]
}
COSINE = {"n": 200, "mean_cosine": 0.84, "low": 0.79, "high": 0.88, "num_units": 5}
SGD = {
    **{"gain_at_largest_rate": 1.0, "collapse_at_smallest_rate": 2.0, "num_questions": 50},
    **{"gain_at_largest_rate_low": 0.5, "gain_at_largest_rate_high": 1.5},
    **{"collapse_at_smallest_rate_low": 1.0, "collapse_at_smallest_rate_high": 3.0},
}


@pytest.mark.parametrize(
    ("name", "result", "verdict", "value"),
    [
        ("C7", study("connectivity", {}, CONNECTIVITY), NOT, 2.0),
        ("C11", study("calibration", COSINE), OPEN, 0.84),
        ("C12", study("fidelity", {"stride": 5, "num_tasks": 8}, FIDELITY), HOLDS, 0.985),
        ("C13", study("fidelity", {}, NORMS), NOT, 0.6),
        ("C14", study("hessian", {"raw_z_score": 40.0, "centered_z_score": 30.0}), HOLDS, 30.0),
        ("C15", study("mergers", {}, MERGERS), OPEN, 2.0),
        ("C16", study("sgd", SGD), NOT, 2.0),
    ],
)
def test_each_study_decides_its_claim(
    name: str, result: StudyResult, verdict: str, value: float
) -> None:
    found = decide(name, result)
    assert (found["verdict"], found["value"]) == (verdict, pytest.approx(value))
    assert claims()[name].study == result.name


def test_a_study_without_its_numbers_is_not_testable() -> None:
    found = decide("C14", study("hessian", {"raw_z_score": None}))
    assert "`raw_z_score`" in found["note"]
    short = study("connectivity", {}, {"table05_linear_mode_connectivity": []})
    assert decide("C7", short)["verdict"] == "not tested"


def test_another_base_is_marked() -> None:
    summary = {"raw_z_score": 4.0, "centered_z_score": 9.0}
    result = study("hessian", summary, base="a" * 64)
    found = decide("C14", result)
    assert found["verdict"] == "fails"
    assert "base aaaaaaaa" in found["note"]
    assert "aaaaaaaa" in studies_part({"hessian": result}, BASE_HASH)
    assert "aaaaaaaa" not in studies_part({"hessian": result}, "a" * 64)


def test_planned_studies_are_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_sections, "sentences", lambda name, _: f"The {name} in words.")
    folder, report = tmp_path / "studies" / "synthetic", tmp_path / "synthetic"
    for name in ("gain", "weights", "hessian"):  # hessian is left of an earlier plan
        result = {"tables": {"t": [{"a": 1}]}, "summary": {"x": 2}}
        write_json(folder / name / "result.json", result | {"provenance": {"base_hash": "f" * 64}})
        write_json(report / "studies" / name / "figures/a.png", {})
    found = load_studies("synthetic", tmp_path, ("weights", "gain"), report)
    assert list(found) == ["weights", "gain"]
    gain = found["gain"]
    assert (gain.title, gain.summary) == (STUDIES["gain"].title, {"x": 2})
    assert (gain.figures, gain.drawn) == (("a",), "studies/gain/figures")
    assert gain.path == "../studies/synthetic/gain"
    assert "base ffffffff" in str(gain.caveat("e" * 64))
    for change, named in (
        (lambda path: write_json(path, {"summary": {}}), "key `tables`"),
        (lambda path: path.write_text('{\n"a" 1}'), "line 2"),
        (Path.unlink, "file not found"),
    ):
        change(folder / "weights" / "result.json")
        with pytest.raises(MeritError, match=rf"weights/result\.json.*{named}"):
            load_studies("synthetic", tmp_path, ("weights", "gain"), report)


# --- pages --------------------------------------------------------------------------------------


def ready_study(**summary: Any) -> StudyResult:
    stated = {"merge_ready": True, "failed": [], "decided_by_d": False, "verdict": "Said."}
    return study("readiness", stated | summary)


def test_the_ledger_is_written_in_full(tmp_path: Path) -> None:
    case = make_case()
    records = ledger(case)
    assert counts(records) == {"holds": 5, "fails": 1, "undecided": 2, "not tested": 15}
    write_ledger(records, case, tmp_path)
    assert read_json(tmp_path / "claims.json") == records
    page = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "+12.5 [+12.5, +12.5]" in page
    assert [c.id for c in claims().values() if f"## {c.id}: " not in page] == []


def test_what_readiness_asks_for_is_a_precondition() -> None:
    unready = readiness(make_case({"readiness": ready_study(merge_ready=False, failed=["c"])}))
    assert [letter for letter in "abcd" if f"{letter}: " in unready] == ["c"]
    assert readiness(make_case()) == ""
    alone = {r["id"]: r for r in ledger(make_case())}
    assert {record["role"] for record in alone.values()} == {"claim"}
    records = ledger(make_case({"readiness": ready_study(decided_by_d=True)}))
    found = {r["id"]: r for r in records}
    assert [i for i, record in found.items() if record["role"] == "precondition"] == ["C2"]
    assert found["C2"]["verdict"] == alone["C2"]["verdict"] == "holds"
    assert found["C2"]["links"] == alone["C2"]["links"]
    assert counts(records) == counts(list(alone.values())) | {"holds": 4}
