"""sgd: joint training and MERIT under SGD without momentum over learning rates (table 18)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.report import style
from eval.studies.compare import Interval, Scores, average, difference, num_questions, verdict
from eval.studies.runs import (
    Candidate,
    Run,
    average_runs,
    distance,
    score_models,
    study_folder,
    train_runs,
)
from merit.config import Experiment, JointMethod, MeritMethod, TrainedMethod, load_params
from merit.config_studies import Sgd
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json
from merit.methods import plan

Row = dict[str, Any]


def measure(experiment: Experiment, paths: Artifacts, settings: Sgd) -> dict[str, Any]:
    """Train every method's branches at every rate, merge, answer the test questions."""
    from merit.models import use_one_thread

    use_one_thread()
    methods, reference = _methods(experiment, settings)
    rates = sorted(set(settings.learning_rates))
    folder, workers = study_folder(paths, "sgd"), load_params().workers
    planned = plan(experiment).models
    branches = {m: planned[f"{m}-s{settings.seed}"].branches for m in methods}
    manifests = {
        branch: read_json(paths.manifest(branch))
        for branch in dict.fromkeys(itertools.chain(*branches.values()))
    }
    runs = []
    for rate, (branch, manifest) in itertools.product(rates, manifests.items()):
        optimizer = experiment.training.optimizer.model_copy(
            update={"algorithm": "sgd", "learning_rate": rate}
        )
        training = experiment.training.model_copy(update={"optimizer": optimizer})
        runs.append(Run(_name(branch, rate), paths, manifest, training))
    trained = train_runs(runs, folder / "runs", workers, "sgd")
    models = [Candidate("base", paths.base)]
    displacements: dict[str, float] = {}
    for method, rate in itertools.product(methods, rates):
        parts = [trained[_name(branch, rate)] for branch in branches[method]]
        if all(part.failure is None for part in parts):
            name = _name(method, rate)
            merged = functools.partial(average_runs, parts, experiment.merge_weights)
            models.append(Candidate(name, paths.base, merged))
            displacements[name] = distance(paths.base, merged())
    scores = score_models(
        experiment, paths.data / "benchmarks", models, folder / "test", workers, "sgd"
    )
    rows = [
        sweep_row(method, rate, scores, displacements, reference)
        for method, rate in itertools.product(methods, rates)
    ]
    base = average([scores["base"]])
    return {
        "tables": {"table18_sgd_lr_sweep": paper_table(rows, base[0], rates), "sgd_sweep": rows},
        "summary": summary(experiment, rows, scores, settings, reference),
        "text": text(rows, base, reference, num_questions(scores["base"])),
        "methods": methods,
        "learning_rates": rates,
        "base": base,
    }


def _methods(experiment: Experiment, settings: Sgd) -> tuple[list[str], str]:
    """The methods, and the joint one that the others are held against.

    Raises MeritError where one is not trained, or none is joint training for one epoch count.
    """
    for name in settings.methods:
        method = experiment.methods.get(name)
        if not isinstance(method, TrainedMethod) or settings.seed not in method.seeds:
            raise MeritError(
                f"studies.sgd: {name!r} with seed {settings.seed} is not among the trained methods"
            )
    joint = [m for m in settings.methods if isinstance(experiment.methods[m], JointMethod)]
    if not joint:
        raise MeritError("studies.sgd.methods: name a joint method to compare with")
    return settings.methods, "joint-1ep" if "joint-1ep" in joint else joint[0]


def sweep_row(
    method: str,
    rate: float,
    scores: Mapping[str, Scores],
    displacements: dict[str, float],
    reference: str,
) -> Row:
    """One method at one rate; None wherever a training did not stay finite."""
    name, other = _name(method, rate), _name(reference, rate)

    def cells(prefix: str, found: Interval | None) -> Row:
        value, low, high = found or (None, None, None)
        return {prefix: value, f"{prefix}_low": low, f"{prefix}_high": high}

    ours = [scores[name]] if name in scores else None
    theirs = [scores[other]] if other in scores else None
    return {
        "method": method,
        "learning_rate": rate,
        **cells("avg", average(ours) if ours else None),
        **cells("minus_joint", difference(ours, theirs) if ours and theirs else None),
        **cells("minus_base", difference(ours, [scores["base"]]) if ours else None),
        "displacement": displacements.get(name),
        "num_questions": num_questions(scores["base"]),
    }


def paper_table(rows: Sequence[Row], base: float, rates: Sequence[float]) -> list[Row]:
    """Table 18: a row a method, a column a learning rate; the base in every column."""
    table: dict[str, Row] = {
        "base": {"method": "base", **{rate_label(rate): base for rate in rates}}
    }
    for row in rows:
        line = table.setdefault(row["method"], {"method": row["method"]})
        line[rate_label(row["learning_rate"])] = row["avg"]
    return list(table.values())


def rate_label(rate: float) -> str:
    """The paper's way of writing rates: 0.00008 is "8e-5"."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def summary(
    experiment: Experiment,
    rows: Sequence[Row],
    scores: Mapping[str, Scores],
    settings: Sgd,
    reference: str,
) -> Row:
    """C16: does merging help at the largest rate, and does the deepest split fall at the smallest?

    "Best" at the largest rate is the best by these very questions, so its interval flatters it.
    """
    known = {name: experiment.methods[name] for name in settings.methods}
    merit = {name: found.axes for name, found in known.items() if isinstance(found, MeritMethod)}
    rates = sorted({row["learning_rate"] for row in rows})
    found: Row = {
        "reference": reference,
        "seed": settings.seed,
        "smallest_rate": rates[0],
        "largest_rate": rates[-1],
        "num_questions": rows[0]["num_questions"],
        "base": average([scores["base"]])[0],
    }

    def compare(key: str, ours: str, theirs: str) -> None:
        if ours in scores and theirs in scores:
            value, low, high = difference([scores[ours]], [scores[theirs]])
            found.update({key: value, f"{key}_low": low, f"{key}_high": high})
            found[f"{key}_n"] = rows[0]["num_questions"]

    last = [row for row in rows if row["learning_rate"] == rates[-1] and row["method"] in merit]
    if any(row["avg"] is not None for row in last):
        best = max(last, key=lambda row: row["avg"] if row["avg"] is not None else -1.0)
        found["best_at_largest_rate"] = best["method"]
        compare(
            "gain_at_largest_rate", _name(best["method"], rates[-1]), _name(reference, rates[-1])
        )
    if len(merit) > 1:
        most, fewest = max(merit, key=lambda m: merit[m]), min(merit, key=lambda m: merit[m])
        compare("collapse_at_smallest_rate", _name(most, rates[0]), _name(fewest, rates[0]))
    for method in merit:
        for word, name in (("positive", "ahead"), ("negative", "behind")):
            found[f"{name}_{method}"] = [
                row["learning_rate"]
                for row in rows
                if row["method"] == method and _verdict(row, "minus_joint") == word
            ]
    return found


def text(rows: Sequence[Row], base: Interval, reference: str, num_questions: int) -> str:
    """The sweep in two or three sentences, generated."""
    best: dict[str, Row] = {}
    for row in rows:
        leader = best.get(row["method"])
        if row["avg"] is not None and (leader is None or row["avg"] > leader["avg"]):
            best[row["method"]] = row
    peaks = ", ".join(
        f"{method} {row['avg']:.1f} at {rate_label(row['learning_rate'])}"
        for method, row in best.items()
    )
    others = [row for row in rows if row["method"] != reference and row["avg"] is not None]
    words = {word: [r for r in others if _verdict(r, "minus_joint") == word] for word in
             ("positive", "negative", "undecided")}  # fmt: skip
    failed = sum(row["avg"] is None for row in rows)
    under = sum(_verdict(row, "minus_base") == "negative" for row in rows)
    return (
        f"Under SGD every method's best rate (by these questions) gives {peaks}; the base has "
        f"{base[0]:.1f}. At equal rates, merged models are ahead of {reference} in "
        f"{_places(words['positive'])}, behind in {_places(words['negative'])}, and not decided in "
        f"{len(words['undecided'])} of {len(others)} cases ({num_questions} questions, one seed). "
        f"{under} of {len(rows)} models lie below the base"
        + (f"; {failed} trainings did not stay finite." if failed else ".")
    )


def _places(rows: Sequence[Row]) -> str:
    if not rows:
        return "none"
    places = (f"{row['method']} at {rate_label(row['learning_rate'])}" for row in rows)
    return f"{len(rows)} ({', '.join(places)})"


def _verdict(row: Row, prefix: str) -> str:
    if row[prefix] is None:
        return "none"
    return verdict((row[prefix], row[f"{prefix}_low"], row[f"{prefix}_high"]))


def _name(run: str, rate: float) -> str:
    return f"{run}-lr{rate:g}"


def draw(result: dict[str, Any], folder: Path) -> None:
    """The average over the learning rate, a line a method, with the base's."""
    with style.styled():
        figure = style.new_figure(4.2, 2.9)
        axes = figure.subplots()
        for i, method in enumerate(result["methods"]):
            rows = [
                row
                for row in result["tables"]["sgd_sweep"]
                if row["method"] == method and row["avg"] is not None
            ]
            axes.errorbar(
                # a little apart, so that the bars of two methods stay readable
                [row["learning_rate"] * 1.04 ** (i - len(result["methods"]) / 2) for row in rows],
                [row["avg"] for row in rows],
                yerr=[
                    [row["avg"] - row["avg_low"] for row in rows],
                    [row["avg_high"] - row["avg"] for row in rows],
                ],
                color=style.CYCLE[i],
                marker=style.MARKERS[i],
                ms=3.5,
                lw=1.1,
                elinewidth=0.7,
                label=method,
            )
        axes.axhline(result["base"][0], color=style.GREY, ls="--", lw=1, label="base")
        axes.set_xscale("log")
        rates = result["learning_rates"]
        axes.set_xticks(rates, [rate_label(rate) for rate in rates])
        axes.minorticks_off()
        axes.set_xlabel("learning rate (SGD)")
        axes.set_ylabel("average score (%), 95 % interval")
        figure.legend(loc="outside upper center", ncols=3)
        style.save(figure, folder / "figures", "sgd")
