"""Resolves `auto` settings once the number of pictures is known."""

from __future__ import annotations

from fractions import Fraction

_ALL_ROWS_UP_TO = 65_536
_SAMPLED_ROWS = 16_384
_EPOCHS = (5, 400)
# Some four minutes of a core, or half a minute of a large GPU: scores go on rising with views.
_VIEWS, _GPU_VIEWS = 160_000, 640_000


def views_for(setting: int | str, device: str) -> int:
    """The views that a run trains on; `auto` is what its device processes in a few minutes.

    Args:
        setting: `run.views`.
        device: type of the device, cpu or cuda.
    """
    if isinstance(setting, str):
        return _GPU_VIEWS if device == "cuda" else _VIEWS
    return setting


def epochs_for(pictures: int, views: int) -> tuple[int, str]:
    """Epochs for a budget of augmented views, and the reason in words.

    Args:
        pictures: size of the data set.
        views: the budget, `run.views`.
    """
    low, high = _EPOCHS
    wanted = round(Fraction(views, pictures))  # of any number of digits
    epochs = min(high, max(low, wanted))
    reason = f"run.views {views:,} / {pictures:,} pictures"
    if epochs != wanted:
        reason += f", kept within {low} to {high}"
    return epochs, reason


def negatives_for(setting: int | str, pictures: int, batch: int) -> int | None:
    """Rows of the bank to sample each step beside the batch's own; None scores all rows."""
    if setting == "auto":
        setting = "all" if pictures <= _ALL_ROWS_UP_TO else _SAMPLED_ROWS
    if isinstance(setting, str) or setting >= pictures - batch:
        return None
    return setting
