"""Loggers beside `metrics.jsonl`: TensorBoard, MLflow, Weights & Biases.

A logger is opened with the run's folder and recipe, receives the figures of steps, and is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import yaml

from tinyssl.console import log
from tinyssl.errors import JobError, UsageError, joined_lines

Figures = Mapping[str, float]
Log = Callable[[Mapping[str, Any]], None]

_POSITION = ("step", "epoch")


class Logger(Protocol):
    """The interface of loggers."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None: ...

    def log(self, step: int, figures: Figures) -> None:
        """Logs the figures of a step."""

    def close(self) -> None:
        """Writes what is still buffered."""


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
    """A run of MLflow, at the place of its own settings (`MLFLOW_TRACKING_URI`, ...)."""

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
    """Raises UsageError, saying what to install, for a logger whose library is missing."""
    for name in names:
        if find_spec(name) is None:
            install = '"tinyssl[tensorboard]"' if name == "tensorboard" else name
            raise UsageError(f"run.loggers: {name} is not installed; pip install {install}")


@contextmanager
def open_loggers(names: Sequence[str], folder: Path, recipe: str, step: int) -> Iterator[Log]:
    """Opens loggers by name, and closes them in any case.

    Args:
        names: of `LOGGERS`.
        folder: of the run.
        recipe: its YAML.
        step: number of finished steps; above 0 for a resumed run.

    Yields:
        A function that logs a line of `metrics.jsonl`.

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
    """Only warns of errors, since the run is finished."""
    try:
        logger.close()
    except Exception as error:
        log.warning(f"{name} could not be closed: {error}")


def _open(name: str, folder: Path, recipe: str, step: int) -> Logger:
    try:
        return LOGGERS[name](folder, recipe, step)
    except Exception as error:  # libraries raise many types
        raise JobError(
            f"run.loggers: {name} cannot start: {joined_lines(error)}; mend it, or leave it out"
        ) from error


def _pass_on(loggers: dict[str, Logger], line: Mapping[str, Any]) -> None:
    """Warns once of a logger that fails and drops it, so that the run continues."""
    figures = {key: float(value) for key, value in line.items() if key not in _POSITION}
    for name, logger in list(loggers.items()):
        try:
            logger.log(int(line["step"]), figures)
        except Exception as error:
            log.warning(f"{name} failed and gets no more figures: {error}")
            del loggers[name]
