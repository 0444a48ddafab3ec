"""Which base was used, in words, and its scores beside the paper's base."""

from __future__ import annotations

from merit.config import Base, Experiment, Origin
from merit.eval.paper import PaperTable
from merit.eval.report.tables import ShownTable
from merit.eval.table_files import markdown_table

APART = 5.0  # points between two bases from which on they are called different


def base_part(experiment: Experiment, shown: ShownTable, paper: PaperTable) -> str:
    """Markdown: the base, and its row beside the paper's; "" for a generated world."""
    if experiment.data.source.startswith("mini_"):
        return ""
    words = f"**The base**: {described(experiment.base)}."
    rows = base_rows(experiment, shown, paper)
    if not rows:
        return words
    far = [f"{n} ({a - b:+.1f})" for n, a, b in rows if round(abs(a - b), 1) > APART]
    if far:
        words += (
            f" **It is not the paper's base**: more than {APART:.0f} points from it on "
            f"{', '.join(far)}. What follows starts from another model: compare differences to "
            "the base, and not the rows."
        )
    else:
        words += f" No benchmark differs by more than {APART:.0f} points from the paper's base."
    lines = [[n, f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"] for n, a, b in rows]
    head = ["benchmark", "our base", "paper's base", "difference"]
    return f"{words}\n\n{markdown_table([head, *lines])}"


def base_rows(
    experiment: Experiment, shown: ShownTable, paper: PaperTable
) -> list[tuple[str, float, float]]:
    """(benchmark or "avg", ours, the paper's); [] where the paper has no such row."""
    base = next((n for n, m in experiment.methods.items() if m.partition == "base"), None)
    theirs = paper.by_method().get(base, {}) if base and shown.rows else {}
    header, *rows = shown.rows or [[]]
    own = next(
        (row for row in (dict(zip(header, r, strict=True)) for r in rows) if row["method"] == base),
        {},
    )
    return [
        (head, float(own[head]), float(theirs[head]))
        for head in (*paper.columns, "avg")
        if own.get(head) and theirs.get(head)
    ]


def described(base: Base) -> str:
    """Where a base comes from, in words: the hub at a commit, a folder or parts, and phases."""
    if base.assemble is not None:
        words = (
            f"assembled of the vision encoder of {_origin(base.assemble.vision)}, the decoder of "
            f"{_origin(base.assemble.decoder)} and a fresh projector"
        )
    elif base.architecture is not None:
        words = "built from scratch"
    else:
        place = Origin(checkpoint=base.checkpoint, hub=base.hub, revision=base.revision)
        words = _origin(place) + (", as released" if base.hub and not base.phases else "")
    phases = [f"{phase.name} ({phase.num_steps} steps)" for phase in base.phases]
    return f"{words}, then trained: {', '.join(phases)}" if phases else words


def _origin(origin: Origin) -> str:
    return f"`{origin.hub}@{origin.revision}`" if origin.hub else f"`{origin.checkpoint}`"
