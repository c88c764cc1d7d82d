"""What `auto` becomes once the number of pictures is known."""

from __future__ import annotations

_ALL_ROWS_UP_TO = 65_536
_SAMPLED_ROWS = 16_384
_EPOCHS = (5, 400)


def epochs_for(pictures: int, views: int) -> tuple[int, str]:
    """Epochs for a budget of augmented views, and the reason in words.

    Args:
        pictures: size of the data set.
        views: the recipe's budget, `run.views`.
    """
    low, high = _EPOCHS
    epochs = min(high, max(low, round(views / pictures)))
    reason = f"run.views {views:,} / {pictures:,} pictures"
    if epochs in _EPOCHS and round(views / pictures) != epochs:
        reason += f", kept within {low} to {high}"
    return epochs, reason


def negatives_for(setting: int | str, pictures: int, batch: int) -> int | None:
    """Rows of the bank to sample each step beside the batch's own; None scores all rows."""
    if setting == "auto":
        setting = "all" if pictures <= _ALL_ROWS_UP_TO else _SAMPLED_ROWS
    if isinstance(setting, str) or setting >= pictures - batch:
        return None
    return setting
