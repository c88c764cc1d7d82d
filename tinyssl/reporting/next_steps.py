"""Commands for the next steps with a run."""

from __future__ import annotations

from pathlib import Path

from tinyssl.reporting.card import sources_told
from tinyssl.reporting.names import typed
from tinyssl.reporting.run_facts import RunFacts


def judging(facts: RunFacts, labels: str | Path | None) -> tuple[str, list[str]] | None:
    """What to do with a run that was not evaluated on labels, and the commands for it; None for
    one that was.

    Args:
        facts: of the run.
        labels: of the report: a CSV or a folder of class folders; None if not given.
    """
    if facts.result.get("encoders"):
        return None
    run = typed(facts.path)
    if facts.finetuned:
        told = "judge it on pictures that had no part in it; label some if there are none yet"
        return told, [f"tinyssl eval {run} --labels labels.csv"]
    if labels is None:
        pictures = " ".join(map(typed, sources_told(facts))) or "PICTURES"
        return "choose pictures to label, fill in the labels, then judge", [
            f"tinyssl select {run} {pictures} --budget 50 --out to_label.csv",
            f"tinyssl eval {run} --labels to_label.csv",
        ]
    return "judge it on your labels", [f"tinyssl eval {run} --labels {typed(labels)}"]
