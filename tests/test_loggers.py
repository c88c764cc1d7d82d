"""Figures reach other tools, and none of these can harm a run."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tinyssl import loggers
from tinyssl.config import Recipe
from tinyssl.errors import JobError, UsageError
from tinyssl.loggers import LOGGERS, check_loggers, open_loggers

LINE = {"step": 10, "epoch": 1, "loss": 2.5, "lr": 0.1}
RECIPE = Recipe().to_yaml()


def test_recipe_knows_every_logger() -> None:
    assert Recipe.model_validate({"run": {"loggers": list(LOGGERS)}}).run.loggers == list(LOGGERS)


def test_tensorboard_holds_every_figure(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_loggers(["tensorboard"], tmp_path, RECIPE, 0) as log:
        log(LINE)
        log(LINE | {"step": 20, "loss": 2.0})
    with open_loggers(["tensorboard"], tmp_path, RECIPE, 10) as log:
        log(LINE | {"step": 20, "loss": 1.5})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(10, 2.5), (20, 1.5)]
    assert set(found.Tags()["scalars"]) == {"loss", "lr"}


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_others_get_the_same_figures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the library; the calls were tried against both."""
    calls: list[tuple[str, Any]] = []
    library: Any = ModuleType(name)

    def note(call: str) -> Any:
        return lambda *given, **named: calls.append((call, (*given, named)))

    for call in ("start_run", "log_dict", "log_metrics", "end_run"):
        setattr(library, call, note(call))
    library.init = lambda **_: SimpleNamespace(log=note("log_metrics"), finish=note("end_run"))
    monkeypatch.setitem(sys.modules, name, library)
    with open_loggers([name], tmp_path, RECIPE, 0) as log:
        log(LINE)
    assert calls[-2:] == [
        ("log_metrics", ({"loss": 2.5, "lr": 0.1}, {"step": 10})),
        ("end_run", ({},)),
    ]


def test_one_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r'pip install "tinyssl\[tensorboard\]"'):
        check_loggers(["tensorboard"])
    with pytest.raises(UsageError, match="wandb is not installed; pip install wandb"):
        check_loggers(["wandb"])
    check_loggers([])


class Failing:
    """Starts, then fails."""

    closed = False

    def __init__(self, folder: Path, recipe: str, step: int) -> None:
        if step:
            raise OSError("no\nserver")

    def log(self, step: int, figures: dict[str, float]) -> None:
        raise OSError("gone")

    def close(self) -> None:
        Failing.closed = True
        raise OSError("gone too")


def test_one_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "LOGGERS", {"failing": Failing})
    with open_loggers(["failing"], tmp_path, RECIPE, 0) as log:
        log(LINE)
        log(LINE)
    assert [r.message for r in caplog.records].count(
        "failing failed and gets no more figures: gone"
    ) == 1
    assert Failing.closed
    assert "failing could not be closed: gone too" in caplog.text
    with (
        pytest.raises(JobError, match="failing cannot start: no server; mend it"),
        open_loggers(["failing"], tmp_path, RECIPE, 5),
    ):
        pass
