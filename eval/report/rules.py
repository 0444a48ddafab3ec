"""Claims that the scores decide: one method against another on the same questions.

A rule returns the Evidence of one claim or raises NotTestable. Methods are found by what they are,
not by their names; the main method is the MERIT method of `report.partition`, and all others are
those trained for the same number of epochs.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

from merit.eval.report.cells import CLOSED, columns
from merit.eval.report.claims import Case, Claim
from merit.eval.report.comparison import contrast, opponents
from merit.eval.verdict import Evidence, Link, NotTestable

PAPER_AXES = 3  # the claims about chains speak of one to three axes


def beats(claim: Claim, case: Case) -> Evidence:
    """The main method against its opponent of the claim's kind."""
    main, results = main_method(case), case.results
    found = [o for o in opponents(case.experiment, main)[claim.opponent] if o in results.seeds]
    theirs = _first(found, f"a method to hold against {main}: {claim.opponent}")
    kept = columns(results).get(CLOSED) if claim.benchmarks == "closed" else None
    if claim.benchmarks == "closed" and kept is None:
        raise NotTestable("no benchmark is open-ended, or all are")
    link = difference(case, main, theirs, kept)
    return Evidence([link], table_of(case), seeds_note(case, main, theirs, kept))


def random_no_worse(claim: Claim, case: Case) -> Evidence:
    """Every random-K against joint training, with a margin."""
    joint, methods = joint_method(case), _by_size(case, "random", "groups")
    if not methods:
        raise NotTestable("the run lacks random splitting")
    links = [difference(case, name, joint, margin=claim.margin) for name in methods.values()]
    return Evidence(links, table_of(case))


def more_axes_better(claim: Claim, case: Case) -> Evidence:
    """Each additional axis adds to the average."""
    methods = _by_size(case, "merit", "axes")
    wanted = range(1, PAPER_AXES + 1)
    if not set(wanted) <= set(methods):
        raise NotTestable("the run lacks MERIT with one, two and three axes")
    links = [difference(case, methods[b], methods[a]) for a, b in itertools.pairwise(wanted)]
    return Evidence(links, table_of(case))


def beats_random(claim: Claim, case: Case) -> Evidence:
    """MERIT against random groups at equal K, and the advantage's growth with K."""
    pairs = _equal_groups(case, "random")
    if len(pairs) < 2:
        raise NotTestable("the run lacks MERIT and random groups at two or more equal K")
    links = [difference(case, *pair) for pair in pairs]
    links += [growth(case, b, a) for a, b in itertools.pairwise(pairs)]
    return Evidence(links, table_of(case))


def beats_kmeans(claim: Claim, case: Case) -> Evidence:
    """MERIT against K-means at every K that both have."""
    pairs = _equal_groups(case, "kmeans")
    if not pairs:
        raise NotTestable("the run lacks K-means groups")
    return Evidence([difference(case, *pair) for pair in pairs], table_of(case))


def cosine_or_raw(claim: Claim, case: Case) -> Evidence:
    """No worse than raw-gradient PCA with few axes, better with three."""
    methods, raw = _by_size(case, "merit", "axes"), _by_size(case, "rawpca", "axes")
    axes = sorted(set(methods) & set(raw))
    if PAPER_AXES not in axes:
        raise NotTestable("the run lacks cosine and raw PCA with three axes")
    links = [
        difference(case, methods[a], raw[a], margin=0.0 if a == PAPER_AXES else claim.margin)
        for a in axes
    ]
    return Evidence(links, table_of(case))


def open_ended_kept(claim: Claim, case: Case) -> Evidence:
    """Joint training loses open-ended answers, MERIT less than half as much."""
    names = case.results.benchmarks
    kept = [i for i, name in enumerate(names) if name in case.results.open_ended]
    if not kept:
        raise NotTestable("the experiment has no open-ended benchmark")
    methods = case.experiment.methods
    base = _first([n for n, m in methods.items() if m.partition == "base"], "the base")
    main, joint = main_method(case), joint_method(case)
    links = [
        difference(case, base, joint, kept),
        difference(case, main, joint, kept),
        growth(case, (main, joint), (base, main), kept),
    ]
    seeds = seeds_note(case, main, joint, kept)
    note = f"on {', '.join(names[i] for i in kept)}; against joint training {seeds}"
    return Evidence(links, table_of(case), note)


def transfers_to_text(claim: Claim, case: Case) -> Evidence:
    """The main method against joint training, in the text experiment only."""
    if case.experiment.report.stem != "table04":
        raise NotTestable("not the text experiment; see mini_text's ledger")
    return beats(claim, case)


def difference(
    case: Case, ours: str, theirs: str, kept: Sequence[int] | None = None, margin: float = 0.0
) -> Link:
    """`ours` - `theirs` > -margin on the average of the benchmarks at positions `kept`."""
    return _link(case, f"{ours} − {theirs}", {ours: 1.0, theirs: -1.0}, kept, bound=0.0 - margin)


def growth(
    case: Case, wide: tuple[str, str], narrow: tuple[str, str], kept: Sequence[int] | None = None
) -> Link:
    """(wide[0] - wide[1]) - (narrow[0] - narrow[1]) > 0, all four on the same questions."""
    # a method may stand on both sides: one term, so that its seeds are drawn once
    coefficients: dict[str, float] = defaultdict(float)
    for sign, method in zip((1.0, -1.0, -1.0, 1.0), (*wide, *narrow), strict=True):
        coefficients[method] += sign
    label = f"({wide[0]} − {wide[1]}) − ({narrow[0]} − {narrow[1]})"
    return _link(case, label, coefficients, kept)


def _link(
    case: Case,
    label: str,
    coefficients: Mapping[str, float],
    kept: Sequence[int] | None,
    bound: float = 0.0,
) -> Link:
    value, low, high, _, n, num_bases = contrast(list(case.bases.values()), coefficients, kept)
    return Link(label, value, n, low, high, bound, refuted=0.0, unit="points", num_bases=num_bases)


def seeds_note(case: Case, ours: str, theirs: str, kept: Sequence[int] | None = None) -> str:
    """How the common seeds of this base agree, one by one."""
    results = case.results
    common = [seed for seed in results.seeds[ours] if seed in results.seeds[theirs]]
    if not common:
        return "no seed in common"
    a, b = (
        results.averages(m, kept)[[results.seeds[m].index(seed) for seed in common]]
        for m in (ours, theirs)
    )
    return f"ahead on {(a > b).sum()} of {len(common)} common seeds"


def table_of(case: Case) -> str:
    """The CSV with the experiment's results."""
    return f"{case.experiment.report.stem}.csv"


def main_method(case: Case) -> str:
    """The MERIT method that the experiment's report is about."""
    name = case.experiment.report.partition
    if name is None or case.experiment.methods[name].partition != "merit":
        raise NotTestable("`report.partition` names no MERIT method")
    return name


def joint_method(case: Case) -> str:
    """Joint training for as many epochs as the main method."""
    return _first(_trained_alike(case, "joint"), "a joint method of the main method's epochs")


def _trained_alike(case: Case, partition: str) -> list[str]:
    """The methods of this kind that are trained for as many epochs as the main one."""
    methods = case.experiment.methods
    epochs = getattr(methods[main_method(case)], "epochs", None)
    return [
        name
        for name, method in methods.items()
        if name in case.results.seeds
        and method.partition == partition
        and getattr(method, "epochs", None) == epochs
    ]


def _by_size(case: Case, partition: str, size: str) -> dict[int, str]:
    """Number of axes or groups -> method of this kind, ascending. Args: size: the field's name."""
    methods = case.experiment.methods
    found = {getattr(methods[n], size): n for n in _trained_alike(case, partition)}
    return dict(sorted(found.items()))


def _equal_groups(case: Case, partition: str) -> list[tuple[str, str]]:
    """(MERIT method, other method) at each K that both have, ascending."""
    merit, others = _by_size(case, "merit", "axes"), _by_size(case, partition, "groups")
    return [(name, others[2**axes]) for axes, name in merit.items() if 2**axes in others]


def _first(found: Sequence[str], what: str) -> str:
    if not found:
        raise NotTestable(f"the run lacks {what}")
    return found[0]
