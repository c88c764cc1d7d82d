"""`tinyssl report --compare`: several runs side by side on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tinyssl import __version__
from tinyssl.console import log
from tinyssl.errors import UsageError
from tinyssl.reporting.charts import run_charts, score_chart
from tinyssl.reporting.names import shown
from tinyssl.reporting.page import check_installed, replaceable, write_page
from tinyssl.reporting.recipe_diff import PLACES, told
from tinyssl.reporting.run_facts import RunFacts, flat, read_run
from tinyssl.reporting.tiles import tiles
from tinyssl.reporting.verdict import Judged, Verdict, best_of, judged, measured_on


def compare(runs: Sequence[str | Path], out: str | Path = "compare.html") -> Path:
    """Writes a page with scores, curves, settings and cost of several runs.

    Args:
        runs: two or more run folders.
        out: the page.

    Raises:
        UsageError: fewer than two runs, one that is not a run, or the extra `report` is missing.
        JobError: the page cannot be written.
    """
    check_installed()
    if len(runs) < 2:
        raise UsageError(f"--compare: got {len(runs)} run; give at least 2")
    target = replaceable(out)
    facts = [read_run(run) for run in runs]
    names = run_names(facts)
    encoders = [own_scores(name, fact) for name, fact in zip(names, facts, strict=True)]
    write_page("compare.html.j2", _context(facts, names, encoders), target)
    log.info(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB)")
    return target


def run_names(facts: Sequence[RunFacts]) -> list[str]:
    """Names of the folders, or full paths where two names are the same."""
    names = [fact.name for fact in facts]
    whole = len(set(names)) < len(names)
    return [shown(fact.path if whole else fact.name) for fact in facts]


def own_scores(name: str, facts: RunFacts) -> Judged:
    """The scores of a run's own encoder under the run's name; empty if it was not evaluated."""
    encoders = judged(facts.result)
    return replace(encoders[-1], name=name) if encoders else Judged(name, {}, None)


def comparable(facts: Sequence[RunFacts]) -> bool:
    """Whether all evaluated runs had the same classes and numbers of pictures."""
    return len({_judged_on(fact) for fact in facts if fact.result}) <= 1


def different_settings(facts: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Settings that differ between runs: key, and the value in each run."""
    recipes = [flat(fact.recipe) for fact in facts]
    keys = [key for key in dict.fromkeys(k for r in recipes for k in r) if key not in PLACES]
    rows = [(key, [told(r[key]) if key in r else "-" for r in recipes]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _judged_on(facts: RunFacts) -> str:
    result = facts.result
    last = list(result["encoders"].values())[-1:]
    counts = [sum(row) for found in last for row in found.get("knn", {}).get("confusion", [])]
    return str([result["classes"], result["train"], result["test"], counts])


def _context(
    facts: Sequence[RunFacts], names: Sequence[str], encoders: Sequence[Judged]
) -> dict[str, Any]:
    scored = [encoder for encoder in encoders if encoder.scores]
    return {
        "version": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "title": " and ".join(names) if len(names) == 2 else f"{len(names)} runs",
        "names": names,
        "facts": facts,
        "verdict": _verdict(facts, scored),
        "encoders": encoders,
        "measures": list(dict.fromkeys(m for e in scored for m in e.scores)),
        "score_chart": score_chart(scored, _places(encoders)) if scored else None,
        "charts": run_charts(facts, names),
        "settings": different_settings(facts),
        "costs": _costs(facts),
    }


def _places(encoders: Sequence[Judged]) -> list[int]:
    """Positions of evaluated runs, so that a run has the same colour in every chart."""
    return [place for place, encoder in enumerate(encoders) if encoder.scores]


def _verdict(facts: Sequence[RunFacts], scored: Sequence[Judged]) -> Verdict:
    if len(scored) < 2:
        return Verdict(
            "unknown",
            "Not known: fewer than two of the runs were judged on labels.",
            ["Judge each of them: tinyssl eval RUN --labels labels.csv, with the same labels."],
        )
    if not comparable(facts):
        return Verdict(
            "unknown",
            "Not known: the runs were judged on different pictures.",
            ["Their scores cannot be compared; judge all of them with the same --labels."],
        )
    found = best_of(scored)
    result = next(fact.result for fact in facts if fact.result)
    found.sentences.append(measured_on(result | {"pretrained_on": 0}))  # differs between runs
    found.sentences.extend(_pretrained_on(facts))
    unjudged = [n for n, fact in zip(run_names(facts), facts, strict=True) if not fact.result]
    if unjudged:
        found.sentences.append(f"Not judged on labels: {', '.join(unjudged)}.")
    splits = {str(fact.result["split"]) for fact in facts if fact.result}
    if len(splits) > 1:
        found.sentences.append(
            "The splits have different names with as many pictures of each class; make sure they "
            f"are the same: {', '.join(map(shown, sorted(splits)))}."
        )
    return found


def _pretrained_on(facts: Sequence[RunFacts]) -> list[str]:
    """A sentence on the runs that test pictures were in the pretraining of, if there are any."""
    counts = [fact.result.get("pretrained_on", 0) for fact in facts]
    told = [f"{n} on {c:,}" for n, c in zip(run_names(facts), counts, strict=True) if c]
    return [f"Pretrained on test pictures, without labels: {', '.join(told)}."] if told else []


def _costs(facts: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    columns = [dict(tiles(fact)) for fact in facts]
    keys = dict.fromkeys(key for column in columns for key in column)
    network = ("network", [shown(fact.encoder["name"]) for fact in facts])
    return [network, *((key, [column.get(key, "-") for column in columns]) for key in keys)]
