"""How often a judge is asked, and what that costs."""

from __future__ import annotations

from merit.check.estimate import Work
from merit.check.facts import facts


def judge_calls(work: Work) -> int:
    """At most, over all models: without a judge, those that cannot be scored otherwise."""
    given = work.experiment.evaluation.judge is not None
    asked = (
        known.judge_calls
        for name, known in work.questions.items()
        if work.records[name].judge == "required" or given
    )
    return sum(asked) * len(work.plan.models)


def judge_cost(calls: int, price: list[float]) -> float:
    """Dollars of so many calls at (read, written) dollars a million tokens."""
    tokens = facts().assumptions.judge_tokens
    return calls * sum(n * p for n, p in zip(tokens, price, strict=True)) / 1e6


def judge_line(work: Work, price: list[float] | None) -> str:
    """Calls, tokens and dollars in words; `price` goes before the list of facts.yaml."""
    calls = judge_calls(work)
    if not calls:
        return "Judge: none is asked."
    judge = work.experiment.evaluation.judge
    model = judge.model if judge else "no model named"
    known = facts().judge_prices.get(model)
    read, written = facts().assumptions.judge_tokens
    start = (
        f"Judge ({model}): at most {calls:,} calls, {calls * read / 1e6:,.1f} million tokens read "
        f"and {calls * written / 1e6:,.1f} written ({read} and {written} a call assumed)"
    )
    if price:
        return f"{start}: {judge_cost(calls, price):,.2f} dollars at --judge-price."
    if known:
        listed = f"{known.price[0]:g} and {known.price[1]:g} a million in {known.date}"
        return f"{start}: {judge_cost(calls, known.price):,.2f} dollars ({listed}: {known.source})."
    return f"{start}; price unknown: --judge-price READ WRITTEN, dollars a million tokens."
