"""Where a run's figures go beside `metrics.jsonl`: TensorBoard, MLflow, Weights & Biases.

A logger is opened with the run's folder and recipe, is told a step's figures, and is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import yaml

from tinyssl.console import log
from tinyssl.errors import JobError, UsageError

Figures = Mapping[str, float]
Log = Callable[[Mapping[str, Any]], None]

_POSITION = ("step", "epoch")


class Logger(Protocol):
    """What every logger can do."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None: ...

    def log(self, step: int, figures: Figures) -> None:
        """Takes the figures of a step."""

    def close(self) -> None:
        """Writes what is still held."""


class TensorBoard:
    """Event files in `<run>/tensorboard`; a resumed run hides what was logged after its start."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("recipe", f"```yaml\n{recipe}\n```", step)

    def log(self, step: int, figures: Figures) -> None:
        """One curve a figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is still held."""
        self._writer.close()


class MLflow:
    """A run of MLflow, where its own settings (`MLFLOW_TRACKING_URI`, ...) say."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None:
        import mlflow

        self._library = mlflow
        mlflow.start_run(run_name=folder.absolute().name)
        mlflow.log_dict(yaml.safe_load(recipe), "recipe.yaml")

    def log(self, step: int, figures: Figures) -> None:
        """One curve a figure."""
        self._library.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        """Ends MLflow's run."""
        self._library.end_run()


class WandB:
    """A run of Weights & Biases, where its own settings (`WANDB_MODE`, ...) say; files in
    `<run>/wandb`."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None:
        import wandb

        self._run = wandb.init(
            dir=str(folder), name=folder.absolute().name, config=yaml.safe_load(recipe)
        )

    def log(self, step: int, figures: Figures) -> None:
        """One curve a figure."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Ends the run of Weights & Biases."""
        self._run.finish()


LOGGERS: Mapping[str, type[Logger]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def check_loggers(names: Sequence[str]) -> None:
    """Raises UsageError, naming what to install, for a logger whose library is not there."""
    for name in names:
        if find_spec(name) is None:
            install = "'tinyssl[tensorboard]'" if name == "tensorboard" else name
            raise UsageError(f"run.loggers: {name} is not installed; pip install {install}")


@contextmanager
def open_loggers(names: Sequence[str], folder: Path, recipe: str, step: int) -> Iterator[Log]:
    """Opens loggers by name and closes them whatever happens.

    Args:
        names: of `LOGGERS`.
        folder: of the run.
        recipe: its YAML.
        step: finished steps; above 0 when a run goes on.

    Yields:
        A function that passes on a line of `metrics.jsonl`.

    Raises:
        JobError: a logger cannot start.
    """
    with ExitStack() as stack:
        loggers: dict[str, Logger] = {}
        for name in names:
            loggers[name] = _open(name, folder, recipe, step)
            stack.callback(_close, name, loggers[name])
        yield lambda line: _pass_on(loggers, line)


def _close(name: str, logger: Logger) -> None:
    """A run that is done is not undone by a server that is gone."""
    try:
        logger.close()
    except Exception as error:
        log.warning(f"{name} could not be closed: {error}")


def _open(name: str, folder: Path, recipe: str, step: int) -> Logger:
    try:
        return LOGGERS[name](folder, recipe, step)
    except Exception as error:  # of whatever kind the library has: a server, a login, a disk
        reason = " ".join(str(error).split())
        raise JobError(
            f"run.loggers: {name} cannot start: {reason}; mend it, or leave it out"
        ) from error


def _pass_on(loggers: dict[str, Logger], line: Mapping[str, Any]) -> None:
    """A logger that fails is told of once and left out: the run must not end with it."""
    figures = {key: float(value) for key, value in line.items() if key not in _POSITION}
    for name, logger in list(loggers.items()):
        try:
            logger.log(int(line["step"]), figures)
        except Exception as error:
            log.warning(f"{name} failed and gets no more figures: {error}")
            del loggers[name]
