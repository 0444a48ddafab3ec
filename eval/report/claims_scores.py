"""Claims that the scores decide: one method against another on the same questions.

Every function returns the Evidence of one claim or raises NotTestable. Methods are found by what
they are, not by their names; the experiment's main method is the MERIT method of
`report.partition`, and all others are those trained for the same number of epochs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from eval.report.claims_evidence import Case, Evidence, Link, NotTestable
from eval.report.intervals import LEVEL, NUM_RESAMPLES, Comparison, compare
from eval.statistics import contrast_bootstrap
from merit.config import (
    AnyMethod,
    BaseMethod,
    JointMethod,
    KmeansMethod,
    MeritMethod,
    RandomMethod,
    RawpcaMethod,
    ShrunkMethod,
)

MARGIN = 1.0  # points: what "no worse than" still allows
PAPER_AXES = 3  # the claims about chains speak of one to three axes


def main_method(case: Case) -> str:
    """The MERIT method that the experiment's report is about."""
    name = case.experiment.report.partition
    if name is None or not isinstance(case.experiment.methods[name], MeritMethod):
        raise NotTestable("`report.partition` names no MERIT method")
    return name


def trained_alike(case: Case) -> dict[str, AnyMethod]:
    """The methods trained for as many epochs as the main one."""
    epochs = _epochs(case.experiment.methods[main_method(case)])
    return {n: m for n, m in case.experiment.methods.items() if _epochs(m) == epochs}


def _epochs(method: AnyMethod) -> float | None:
    return getattr(method, "epochs", None)


def joint_method(case: Case) -> str:
    return _named(
        [n for n, m in trained_alike(case).items() if isinstance(m, JointMethod)],
        "a joint method of the main method's epochs",
    )


def merit_methods(case: Case) -> dict[int, str]:
    """Number of axes -> MERIT method, ascending."""
    found = {m.axes: n for n, m in trained_alike(case).items() if isinstance(m, MeritMethod)}
    return dict(sorted(found.items()))


def _named(found: Sequence[str], what: str) -> str:
    if not found:
        raise NotTestable(f"the run lacks {what}")
    return found[0]


def table_of(case: Case) -> str:
    """The CSV with the experiment's results."""
    return f"{case.experiment.report.paper_table.split('_')[0]}.csv"


# --- one link -----------------------------------------------------------------------------------


def difference(
    case: Case, ours: str, theirs: str, kept: Sequence[int] | None = None, margin: float = 0.0
) -> tuple[Link, Comparison]:
    """`ours` - `theirs` > -margin on the average of the benchmarks at positions `kept`."""
    found = compare(case.results, ours, theirs, kept)
    return _points(f"{ours} − {theirs}", case, found, margin, kept), found


def _points(
    label: str, case: Case, found: Comparison, margin: float, kept: Sequence[int] | None
) -> Link:
    names = case.results.benchmarks
    counted = [names[i] for i in (range(len(names)) if kept is None else kept)]
    return Link(
        label=label,
        value=found.difference,
        low=found.low,
        high=found.high,
        n=sum(case.results.num_questions[name] for name in counted),
        bound=0.0 - margin,
        refuted=0.0,
        unit="points",
    )


def growth(
    case: Case,
    wide: tuple[str, str],
    narrow: tuple[str, str],
    kept: Sequence[int] | None = None,
) -> Link:
    """(wide[0] - wide[1]) - (narrow[0] - narrow[1]) > 0, all four on the same questions.

    Their seeds are resampled together where all that have several have the same ones.
    """
    results = case.results
    kept = range(len(results.benchmarks)) if kept is None else kept
    # a method may stand on both sides: one term, so that its seeds are drawn once
    coefficients: dict[str, float] = {}
    for sign, method in zip((1.0, -1.0, -1.0, 1.0), (*wide, *narrow), strict=True):
        coefficients[method] = coefficients.get(method, 0.0) + sign
    several = {seeds for m in coefficients if len(seeds := results.seeds[m]) > 1}
    _, found = contrast_bootstrap(
        [(c, results.answers_by_name(method, kept)) for method, c in coefficients.items()],
        paired_seeds=len(several) == 1,
        num_resamples=NUM_RESAMPLES,
        confidence=LEVEL,
    )
    return Link(
        label=f"({wide[0]} − {wide[1]}) − ({narrow[0]} − {narrow[1]})",
        value=100 * found.difference,
        low=100 * found.low,
        high=100 * found.high,
        n=found.num_questions,
        unit="points",
    )


def seeds_note(found: Comparison) -> str:
    """How the common seeds agree, one by one."""
    if found.seeds_p_value is None:
        return "no seed in common"
    return (
        f"ahead on {found.seeds_ahead} of {found.num_seeds} common seeds, one-sided Wilcoxon "
        f"p = {found.seeds_p_value:.3g} over them"
    )


# --- the claims ---------------------------------------------------------------------------------


def beats_joint(case: Case) -> Evidence:
    """C1: the main method against joint training."""
    link, found = difference(case, main_method(case), joint_method(case))
    return Evidence([link], table_of(case), seeds_note(found))


def random_no_worse(case: Case) -> Evidence:
    """C2: every random-K against joint training, with a margin."""
    joint = joint_method(case)
    methods = {m.groups: n for n, m in trained_alike(case).items() if isinstance(m, RandomMethod)}
    _named(list(methods.values()), "random splitting")
    links = [difference(case, name, joint, margin=MARGIN)[0] for _, name in sorted(methods.items())]
    return Evidence(links, table_of(case))


def more_axes_better(case: Case) -> Evidence:
    """C3: each additional axis adds to the average."""
    methods = merit_methods(case)
    pairs = [(a, a + 1) for a in range(1, PAPER_AXES) if {a, a + 1} <= set(methods)]
    if len(pairs) < PAPER_AXES - 1:
        raise NotTestable("the run lacks MERIT with one, two and three axes")
    links = [difference(case, methods[b], methods[a])[0] for a, b in pairs]
    return Evidence(links, table_of(case))


def beats_random(case: Case) -> Evidence:
    """C4: MERIT against random groups at equal K, and the advantage's growth with K."""
    pairs = _equal_groups(case, RandomMethod)
    if len(pairs) < 2:
        raise NotTestable("the run lacks MERIT and random groups at two or more equal K")
    links = [difference(case, *pair)[0] for pair in pairs]
    links += [growth(case, b, a) for a, b in itertools.pairwise(pairs)]
    return Evidence(links, table_of(case))


def beats_kmeans(case: Case) -> Evidence:
    """C5: MERIT against K-means at every K that both have."""
    pairs = _equal_groups(case, KmeansMethod)
    if not pairs:
        raise NotTestable("the run lacks K-means groups")
    return Evidence([difference(case, *pair)[0] for pair in pairs], table_of(case))


def cosine_or_raw(case: Case) -> Evidence:
    """C6: no worse than raw-gradient PCA with few axes, better with three."""
    methods = merit_methods(case)
    raw = {m.axes: n for n, m in trained_alike(case).items() if isinstance(m, RawpcaMethod)}
    axes = sorted(set(methods) & set(raw))
    if PAPER_AXES not in axes:
        raise NotTestable("the run lacks cosine and raw PCA with three axes")
    links = [
        difference(case, methods[a], raw[a], margin=0.0 if a == PAPER_AXES else MARGIN)[0]
        for a in axes
    ]
    return Evidence(links, table_of(case))


def open_ended_kept(case: Case) -> Evidence:
    """C17: joint training loses open-ended answers, MERIT less than half as much."""
    names = case.results.benchmarks
    kept = [i for i, name in enumerate(names) if name in case.results.open_ended]
    if not kept:
        raise NotTestable("the experiment has no open-ended benchmark")
    base = _named(
        [n for n, m in case.experiment.methods.items() if isinstance(m, BaseMethod)], "the base"
    )
    main, joint = main_method(case), joint_method(case)
    lost, (gained, found) = (
        difference(case, base, joint, kept)[0],
        difference(case, main, joint, kept),
    )
    halved = growth(case, (main, joint), (base, main), kept)
    note = f"on {', '.join(names[i] for i in kept)}; against joint training {seeds_note(found)}"
    return Evidence([lost, gained, halved], table_of(case), note)


def transfers_to_text(case: Case) -> Evidence:
    """C19: the main method against joint training, in the text experiment only."""
    if not case.experiment.report.paper_table.startswith("table04"):
        raise NotTestable("not the text experiment; see mini_text's ledger")
    link, found = difference(case, main_method(case), joint_method(case))
    return Evidence([link], table_of(case), seeds_note(found))


def beats_shrunk(case: Case) -> Evidence:
    """C21: the main method against the joint model shrunk to its distance from the base."""
    main = main_method(case)
    shrunk = _named(
        [
            n
            for n, m in case.experiment.methods.items()
            if isinstance(m, ShrunkMethod) and m.match == main
        ],
        f"the joint model shrunk to {main}'s distance",
    )
    link, found = difference(case, main, shrunk)
    return Evidence([link], table_of(case), seeds_note(found))


def _equal_groups(
    case: Case, kind: type[RandomMethod] | type[KmeansMethod]
) -> list[tuple[str, str]]:
    """(MERIT method, other method) at each K that both have, ascending."""
    others = {m.groups: n for n, m in trained_alike(case).items() if isinstance(m, kind)}
    return [
        (name, others[2**axes]) for axes, name in merit_methods(case).items() if 2**axes in others
    ]
