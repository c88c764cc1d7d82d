"""`tinyssl pretrain`: from a recipe and pictures to a run folder."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tinyssl import distributed
from tinyssl.backbones import resolve_name
from tinyssl.build import settle
from tinyssl.checkpoint import load_checkpoint
from tinyssl.config import Recipe, load_recipe, read_recipe, shortcuts
from tinyssl.console import log, silence
from tinyssl.data import Pictures
from tinyssl.device import check_bf16, pick_device, torch_put_back
from tinyssl.errors import UsageError, a_few
from tinyssl.files import as_list, write_text
from tinyssl.labeled import RESULT
from tinyssl.loggers import check_loggers
from tinyssl.reporting.command import REPORT, leave_report
from tinyssl.run import Run
from tinyssl.run_folder import HELD_OUT, RunFolder
from tinyssl.sources import read_pictures, with_sources
from tinyssl.weights import WEIGHTS


def pretrain(
    data: str | Path | Sequence[str | Path] = (),
    recipe: str | Path = "mobilenetv3-small",
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    **settings: object,
) -> Path:
    """Pretrains an encoder on unlabeled pictures and writes a run folder.

    Args:
        data: a folder, a picture, a .txt/.csv list, or several of these.
        recipe: name of a bundled recipe, or a YAML file; ignored with `resume`.
        out: the run folder; `runs/<recipe name>` when None.
        overrides: `section.key=value` settings on top of the recipe, one or several.
        resume: continue the run in `out`; no other argument is needed.
        overwrite: replace an earlier run in `out`.
        settings: holdout, epochs, batch_size, image_size, device, workers, seed: short for the
            overrides `data.holdout=...`, `run.epochs=...` and so on.

    Returns:
        The run folder.

    Raises:
        UsageError: wrong input; nothing was written.
        JobError: the run cannot continue; the text says what was kept.
        Interrupted: SIGINT, SIGTERM or SIGHUP; the run was saved and can be resumed.
    """
    _refuse_worker()
    folder = RunFolder(out if out is not None else Path("runs") / Path(recipe).stem)
    all_overrides = [*as_list(overrides), *shortcuts(settings)]
    with ExitStack() as held:
        held.enter_context(distributed.joined())
        held.enter_context(torch_put_back())
        held.enter_context(folder.log_to_file() if distributed.is_main() else silence())
        run = _prepare(data, recipe, folder, all_overrides, resume, overwrite, held)
        done = run.progress.step >= run.plan.steps
        path = run.go()
        # A run that was finished before may have a full report by now.
        if distributed.is_main() and not (done and (path / REPORT).exists()):
            leave_report(path, run.pictures)
        return path


def _refuse_worker() -> None:
    """Raises UsageError in a process that imports a user's script to help a run that it began.

    It would begin the run once more, and with `overwrite` remove what is there.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(
            "this script is being read again by a process that is to help a run; call tinyssl "
            'below `if __name__ == "__main__":`'
        )


def _prepare(
    data: str | Path | Sequence[str | Path],
    recipe: str | Path,
    folder: RunFolder,
    overrides: Sequence[str],
    resume: bool,
    overwrite: bool,
    held: ExitStack,
) -> Run:
    """Checks everything and reads the pictures before anything is written to the folder.

    The folder is locked for this process until `held` is closed.
    """
    state = None
    if resume:
        state, settled = _read_saved(folder, held)
        if overrides or data:
            raise UsageError("--resume goes on with the saved recipe; give no data and no settings")
    else:
        settled = with_sources(load_recipe(recipe, overrides), data)
        _refuse_own_start(settled.encoder.init, folder.path)
        distributed.on_main(lambda: _refuse_out(folder, settled, overwrite))
    resolve_name(settled.encoder.name)
    device = pick_device(settled.run.device)
    check_bf16(settled.run.precision, device, settled.augment.view_size)
    check_loggers(settled.run.loggers)
    with distributed.one_goes_first():
        left_out = folder.path / HELD_OUT if state is not None else None
        pictures = _pictures_again(settled, left_out) if resume else read_pictures(settled)
    if not distributed.same_for_all(pictures.digest):
        raise UsageError(
            f"the processes of this run find different pictures at {a_few(settled.data.sources)}; "
            "give all machines the same files"
        )
    settled = settle(settled, len(pictures.paths), pictures.array.shape[3])
    run = Run(settled, pictures, folder, state)
    if state is None:
        distributed.on_main(lambda: run.create_folder(held, overwrite or resume))
    elif distributed.is_main() and not folder.recipe.exists():
        write_text(folder.recipe, settled.to_yaml())
    if distributed.is_main():
        folder.begin_log()
    return run


def _refuse_out(folder: RunFolder, recipe: Recipe, overwrite: bool) -> None:
    if overwrite:
        folder.refuse_to_replace()
        labels = (recipe.data.holdout, recipe.run.watch_labels)
        folder.refuse_to_lose([*recipe.data.sources, *(name for name in labels if name)])
        return
    folder.refuse_if_used()
    cache, out = recipe.data.cache_dir, os.path.realpath(folder.path)
    if cache is not None and Path(os.path.realpath(cache)).is_relative_to(out):
        raise UsageError(
            f"data.cache_dir {cache} lies in --out {folder.path}, which must be new; name another "
            "folder for one of them"
        )


def _refuse_own_start(init: str, out: Path) -> None:
    there = Path(os.path.realpath(out))
    start = Path(os.path.realpath(init))
    if init not in ("random", "pretrained") and (start == there or there in start.parents):
        raise UsageError(f"--out {out} is where encoder.init lies; name another folder")


def _pictures_again(recipe: Recipe, left_out: Path | None) -> Pictures:
    try:
        return read_pictures(recipe, left_out)
    except UsageError as error:
        raise UsageError(
            f"{error}; --resume goes on with the same pictures: put them back there, a link will do"
        ) from None


def _read_saved(folder: RunFolder, held: ExitStack) -> tuple[dict[str, Any] | None, Recipe]:
    """The checkpoint and its recipe; without a checkpoint yet, None and the run's recipe."""
    if folder.checkpoint.exists() or not folder.recipe.is_file():
        if folder.path.is_dir():
            distributed.on_main(lambda: held.enter_context(folder.hold()))
        state = load_checkpoint(folder.checkpoint)
        recipe = read_recipe(str(state.get("recipe")), str(folder.checkpoint))
        if folder.recipe.is_file() and not _still_says(folder.recipe, recipe):
            raise UsageError(
                f"{folder.recipe} was changed, and --resume goes on with what the run began with; "
                "remove it to have that written again, or name it as --recipe of a new run"
            )
        return state, recipe
    if (folder.path / RESULT).exists():
        raise UsageError(
            f"{folder.path} is a fine-tuned run, of which nothing is left to resume; run tinyssl "
            f"finetune again, or pretrain in another --out with encoder.init={folder.path}"
        )
    if (folder.path / WEIGHTS).exists():
        raise UsageError(
            f"{folder.path} has an encoder but no {folder.checkpoint.name} to go on from; put "
            f"{folder.checkpoint} back, or start anew in another --out"
        )
    folder.refuse_to_replace()
    log.info(f"{folder.path} has no checkpoint yet: beginning again with its recipe")
    return None, load_recipe(folder.recipe)


def _still_says(path: Path, recipe: Recipe) -> bool:
    try:
        return load_recipe(path) == recipe
    except UsageError:  # no longer a recipe
        return False
