"""retention: a row per model: the loss on the base's answers, and the words of its own."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from merit.eval.measuring.scores import mean_interval
from merit.eval.report.style import BLUE, GREY, interval_row, name_rows, panels


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    rows, answers = result["tables"]["retention"], result["tables"]["answers"]
    figure, (loss, words) = panels(1, 2, 0.9 + 0.18 * len(rows), sharey=True)
    for axes in (loss, words):
        name_rows(axes, [row["model"] for row in rows])
    for y, row in enumerate(rows):
        interval_row(loss, y, (row["loss"], row.get("loss_low"), row.get("loss_high")), color=BLUE)
        own = [len(answer[row["model"]].split()) for answer in answers]
        interval_row(words, y, mean_interval(own), color=BLUE)
    loss.axvline(rows[0]["loss"], color=GREY, ls="--", lw=0.8)
    words.axvline(rows[0]["words"], color=GREY, ls="--", lw=0.8)
    loss.set_title(f"Loss on the base's answers to {len(answers)} prompts")
    loss.set_xlabel("loss per token (nats)")
    words.set(title="Length of the model's own answers", xlabel="words, mean with 95 % interval")
    return {"retention": figure}
