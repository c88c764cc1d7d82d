"""Pretraining runs that are looked at while they go: a script for `torchrun`, and for one process.

    torchrun --nproc-per-node=2 -m tests.watched_runs jobs.json

`jobs.json` is a list of arguments of `watched`.
"""

import json
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tinyssl import distributed
from tinyssl import run as module
from tinyssl.errors import Interrupted, TinysslError
from tinyssl.near import near_by_descriptors
from tinyssl.pretraining import pretrain
from tinyssl.train import Hooks


def watched(
    out: str,
    differences: str | None = None,
    keep: str | None = None,
    stop: bool = False,
    die: bool = False,
    others: str | None = None,
    error: str | None = None,
    **call: Any,
) -> None:
    """One call of `pretrain`.

    Args:
        out: the run folder.
        differences: file for how far banks and near pictures of all processes lie apart, by step.
        keep: where to copy the folder after the first epoch.
        stop: the last process, and no other, gets SIGTERM in the first step.
        die: the same with SIGKILL; the others do not hear that `torchrun` then ends them too.
        others: the pictures of the last process, if it has others.
        error: file for what the main process says when it fails, as it must.
        call: the other arguments of `pretrain`.
    """
    apart: list[float] = []
    last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    if others is not None and last:
        call["data"] = others
    if die:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    expected = Interrupted if stop else TinysslError if error else None
    fit, save = module.fit, module.Run._save

    def looked_at(method: Any, *arguments: Any) -> None:
        hooks = next(x for x in arguments if isinstance(x, Hooks))
        advance = hooks.advance

        def look(pictures: int) -> None:
            same = (method.bank.rows, method.near.double())
            apart.append(max(float((x - distributed.mean(x)).abs().max()) for x in same))
            advance(pictures)
            if (stop or die) and last and len(apart) == 1:
                os.kill(os.getpid(), signal.SIGKILL if die else signal.SIGTERM)

        hooks.advance = look
        fit(method, *arguments)

    def copied(run: Any, progress: Any) -> None:
        save(run, progress)
        if keep is not None and not Path(keep).exists():
            shutil.copytree(run.folder.path, keep)

    with (
        mock.patch.object(module, "fit", looked_at),
        mock.patch.object(module.Run, "_save", copied),
        pytest.raises(expected) if expected else nullcontext() as caught,
    ):
        pretrain(out=out, **call)
    if error is not None and caught is not None and distributed.is_main():
        Path(error).write_text(f"{type(caught.value).__name__}: {caught.value}")
    if differences is not None and distributed.is_main():
        Path(differences).write_text(json.dumps(apart))


def other_near(pictures: Any, *arguments: Any) -> Any:
    """What `near_by_descriptors` finds in the main process, and other pictures in all others."""
    return (near_by_descriptors(pictures, *arguments) + distributed.rank()) % len(pictures)


def main() -> None:
    with distributed.joined(), mock.patch.object(module, "near_by_descriptors", other_near):
        for job in json.loads(Path(sys.argv[1]).read_text()):
            watched(**job)


if __name__ == "__main__":
    main()
