"""`tinyssl report`: from a run folder to one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyssl import __version__
from tinyssl.classifier import load_classifier
from tinyssl.console import log, progress
from tinyssl.data import Pictures, worker_count
from tinyssl.errors import UsageError
from tinyssl.files import as_list
from tinyssl.labeled import shaped_by, used_digests
from tinyssl.reporting import card as model_card
from tinyssl.reporting import content
from tinyssl.reporting.advice import advise, all_clear, collapse_of
from tinyssl.reporting.charts import run_charts, score_chart
from tinyssl.reporting.curve_chart import label_curve_chart, label_curve_words
from tinyssl.reporting.device_tables import find_bundle
from tinyssl.reporting.gallery import Gallery, gather
from tinyssl.reporting.mistakes import Mistakes, find_mistakes, from_shares
from tinyssl.reporting.names import shown, typed
from tinyssl.reporting.next_steps import judging
from tinyssl.reporting.page import check_installed, missing, replaceable, write_page
from tinyssl.reporting.recipe_diff import nearest_recipe
from tinyssl.reporting.run_facts import RunFacts, read_run
from tinyssl.reporting.seen import STEPS, look
from tinyssl.reporting.tiles import duration, tiles
from tinyssl.reporting.verdict import (
    Judged,
    Verdict,
    finetuned_verdict,
    judged,
    label_free_verdict,
    label_verdict,
    own_classifier,
)
from tinyssl.reporting.views import acting, draws_views, views_of

REPORT = "report.html"
MOST = 3000  # pictures on the map; more would be slow and hard to see


def report(
    run: str | Path,
    *,
    data: str | Path | Sequence[str | Path] = (),
    labels: str | Path | None = None,
    out: str | Path | None = None,
    bundle: str | Path | None = None,
    card: str | Path | None = None,
    pictures: int = MOST,
    workers: int = 0,
    device: str = "auto",
) -> Path:
    """Writes a report of a run as one HTML page that needs no network.

    Features are kept in the run folder for the next report.

    Args:
        run: a run folder.
        data: pictures to show: folders, files, .txt or .csv lists; the run's own when empty.
        labels: a CSV path,label[,split] or a folder of class folders; its pictures are shown too.
        out: the page; `report.html` in the run folder when None.
        bundle: of the run, made by `export`; `RUN-bundle`, if that exists, when None.
        card: a YAML file with fields of the model card, see `tinyssl.reporting.card.Card`.
        pictures: the most that are shown.
        workers: threads that decode; 0 is one a CPU core.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        The page.

    Raises:
        UsageError: no run, no pictures, labels or a card that do not fit, or the extra `report`
            is not installed.
        JobError: the page cannot be written.
    """
    check_installed()
    if pictures < 2:
        raise UsageError(f"pictures: got {pictures}; at least 2 are needed")
    workers = worker_count(workers)
    facts = read_run(run)
    told = model_card.read_card(card)
    device_facts = find_bundle(facts.path, facts.digests, bundle)
    sources = as_list(data)
    read = [*sources, *([] if labels is None else [labels])]
    target = replaceable(facts.path / REPORT if out is None else out, read)
    gallery = gather(facts, sources, labels, most=pictures, device=device, workers=workers)
    context = _run_context(facts, facts.machine.get("pictures"), told)
    context |= _seen_context(facts, gallery)
    context["next"] = judging(facts, labels)
    context["advice"] = advise(facts, context["pictures"], context["near_copies"])
    context["views"] = views_of(facts, gallery.pictures)
    context["bundle"] = device_facts
    write_page("report.html.j2", context, target)
    log.info(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB)")
    _tell_verdict(facts, context["next"])
    return target


def _tell_verdict(facts: RunFacts, to_do: tuple[str, list[str]] | None) -> None:
    """Logs the source of the verdict: scores of `eval`, never the labels of the report."""
    if to_do is None:
        log.info(f"its verdict is that of eval.json, with the split {facts.result.get('split')}")
    else:
        log.info(f"it has no verdict yet: {to_do[0]}, with: {to_do[1][-1]}")


def leave_report(run: Path, pictures: Pictures) -> None:
    """Writes a quick report without a map into a finished run; never raises."""
    absent = missing()
    if absent:
        log.info(f'no report: {" and ".join(absent)} missing; pip install "tinyssl[report]"')
        return
    try:
        facts = read_run(run)
        context = _run_context(facts, len(pictures.paths), model_card.Card())
        context |= {"seen": None, "near_copies": None, "bundle": None}
        context["next"] = judging(facts, None)
        context["advice"] = advise(facts, len(pictures.paths), None)
        context["views"] = views_of(facts, pictures)
        write_page("report.html.j2", context, run / REPORT)
    except Exception as error:  # the run itself is done and good
        log.warning(f"no report: {type(error).__name__}: {error}")
        return
    log.info(f"wrote {run / REPORT}; with a map of the pictures: tinyssl report {run}")


def _run_context(facts: RunFacts, pictures: int | None, card: model_card.Card) -> dict[str, Any]:
    encoders = judged(facts.result)
    name, settings = nearest_recipe(facts.recipe)
    return {
        "version": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "facts": facts,
        "title": card.title or shown(facts.name),
        "run": typed(facts.path),
        "pictures": pictures,
        "verdict": _verdict(facts, pictures),
        "all_clear": all_clear(facts),
        "encoders": encoders,
        "classifier": own_classifier(facts.result),
        "measures": list(dict.fromkeys(m for e in encoders for m in e.scores)),
        "score_chart": score_chart(encoders, _own_first(encoders)) if encoders else None,
        "draws": _draws(facts.result),
        "viewed": bool(encoders) and all(e.retrieval is not None for e in encoders),
        **_label_curve(facts.result),
        "charts": run_charts([facts]),
        "duration": duration(facts.seconds),
        "tiles": tiles(facts),
        "recipe_name": name,
        "settings": settings,
        "draws_views": draws_views(facts),
        "augmentation": acting(settings, int(facts.encoder["channels"])),
        "card": card,
        "limits": model_card.limits(facts, pictures),
        "start": model_card.start_of(facts),
        "sources": model_card.sources_told(facts),
        "repeat": model_card.repeat_command(facts),
    }


def _own_first(encoders: Sequence[Judged]) -> list[int]:
    """Indices of colours, the first of which is for the run's own encoder, the last one."""
    return [*range(1, len(encoders)), 0]


def _draws(result: dict[str, Any]) -> int:
    shots = (found["few_shot"] for found in result.get("encoders", {}).values())
    return next((score["draws"] for found in shots for score in found.values()), 0)


def _label_curve(result: dict[str, Any]) -> dict[str, Any]:
    points = result.get("curve")
    if not points:
        return {"label_chart": None}
    chart, words = label_curve_chart(points), label_curve_words(points)
    return {"label_chart": chart, "label_words": words, "choices": points[0]["draws"]}


def _verdict(facts: RunFacts, pictures: int | None) -> Verdict:
    if facts.result.get("encoders"):
        return label_verdict(facts.result)
    if facts.finetuned:
        return finetuned_verdict(facts.finetuned)
    losses = _instance_losses(facts)
    return label_free_verdict(facts.last_look(), losses, pictures, collapse_of(facts))


def _instance_losses(facts: RunFacts) -> list[float]:
    """Per epoch; the log has them times the share of the target without near pictures."""
    given = (facts.recipe.get("loss") or {}).get("near_weight", 0.0)
    share = 1 - float(given) if facts.curve("near") and isinstance(given, int | float) else 1.0
    return [value / share for _, value in facts.curve("instance")] if share > 0 else []


def _seen_context(facts: RunFacts, gallery: Gallery) -> dict[str, Any]:
    with progress("looking", STEPS, "steps") as advance:
        seen = look(gallery.features, gallery.pictures.hashes, advance)
    mistakes = _mistakes(facts, gallery)
    shots = content.Shots(gallery)
    with progress("thumbnails", len(gallery.names)) as advance:
        data = content.map_data(gallery, seen, advance)
    told: dict[str, Any] = {
        "total": gallery.total,
        "shown": len(gallery.names),
        "labeled": int((gallery.labels >= 0).sum()),
        "map": data,
        "neighbours": content.neighbour_sheets(gallery, seen, shots),
        "clusters": content.cluster_sheets(gallery, seen, shots),
        "groups": len(seen.copies),
        "threshold": seen.threshold,
        "copies": content.copy_sheets(gallery, seen, shots),
        "odd": content.odd_shots(gallery, seen, shots),
        "confusion": None,
    }
    if mistakes is not None:
        told["confusion"] = content.confusion_table(gallery, mistakes)
        told["wrong"] = content.wrong_shots(gallery, mistakes, shots)
        told["how"] = mistakes.how
    near = sum(len(group) - 1 for group in seen.copies) / len(gallery.names)
    return {"seen": told, "near_copies": near}


def _judged_fairly(gallery: Gallery, taught: set[str]) -> NDArray[np.int64]:
    """The labels, with -1 for pictures that a classifier would be judged on too kindly.

    These are test pictures whose labels the encoder was trained on and, without a split, all but
    the first of equal files, of which some would be fitted and others judged.
    """
    judged = np.ones(len(gallery.labels), bool) if gallery.test is None else gallery.test
    labels, first = gallery.labels.copy(), dict[str, int]()
    for row in np.flatnonzero(gallery.labels >= 0).tolist():
        digest = gallery.pictures.hashes[row]
        repeated = gallery.test is None and first.setdefault(digest, row) != row
        if repeated or (judged[row] and digest in taught):
            labels[row] = -1
    return labels


def _mistakes(facts: RunFacts, gallery: Gallery) -> Mistakes | None:
    """Mistakes of the run's own classifier if it has these classes, else of a linear fit."""
    if not gallery.classes:
        return None
    own = load_classifier(facts.path)
    if own is not None and [shown(name) for name in own.classes] == gallery.classes:
        used = used_digests(facts.path)
        unseen = np.array([digest not in used for digest in gallery.pictures.hashes])
        rows = np.flatnonzero((gallery.labels >= 0) & unseen)
        if len(rows):
            shares = own.probabilities(torch.from_numpy(gallery.features[rows])).numpy()
            how = "by the run's own classifier, on pictures whose labels did not train it"
            return from_shares(rows, shares, gallery.labels, how)
    encoders = facts.result.get("encoders", {})
    own_scores: dict[str, Any] = list(encoders.values())[-1] if encoders else {}
    return find_mistakes(
        gallery.features,
        _judged_fairly(gallery, shaped_by(facts.path)),
        len(gallery.classes),
        test=gallery.test,
        strength=own_scores.get("linear", {}).get("C"),
    )
