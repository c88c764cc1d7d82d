"""The grid shows what it says, where it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.making import label_points
from tinyssl.curve_plot import plot_curve
from tinyssl.data import load_pictures
from tinyssl.grid import contact_sheet, picture_grid, write_sheet
from tinyssl.scanning import scan


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_originals_and_views_stand_in_their_places(channels: int, dtype: Any) -> None:
    n, count, side, gap = 2, 3, 10, 4
    shade = np.iinfo(dtype).max // 255
    originals = np.zeros((n, 20, 20, channels), dtype)
    originals[1] = 50 * shade
    views = np.zeros((n, count, channels, side, side))
    for row in range(n):
        for column in range(count):
            views[row, column] = (10 + 100 * row + 30 * column) / 255
    sheet = np.asarray(picture_grid(originals, views, gap))
    assert sheet.shape == (n * (side + gap) + gap, (count + 1) * (side + gap) + 3 * gap, 3)
    for row in range(n):
        middle = gap + row * (side + gap) + side // 2
        assert sheet[middle, gap + side // 2].tolist() == [50 * row] * 3
        for column in range(count):
            left = side + 4 * gap + column * (side + gap) + side // 2
            assert sheet[middle, left].tolist() == [10 + 100 * row + 30 * column] * 3
    assert (sheet[:gap] == 255).all()
    assert (sheet[:, gap + side : gap + side + 2 * gap] == 255).all()


def test_contact_sheet_has_each_picture_above_its_caption() -> None:
    shades = [np.full((20, 20, c), 20 * n, np.uint8) for n, c in enumerate((1, 3, 4, 2, 1), 1)]
    sheet = np.asarray(contact_sheet(shades, list("12345"), columns=3, gap=5))
    assert sheet.shape == (5 + 2 * 39, 5 + 3 * 25, 3)
    for number in range(5):
        row, column = divmod(number, 3)
        top, left = 5 + row * 39, 5 + column * 25
        assert (sheet[top : top + 20, left : left + 20] == 20 * (number + 1)).all()
        assert sheet[top + 20 : top + 34, left : left + 20].min() < 128  # its number
    assert (sheet[44:64, 55:] == 255).all()


def test_what_tinyssl_drew_is_none_of_the_pictures_it_lies_among(
    picture_folder: Callable[..., Path],
) -> None:
    folder = picture_folder(mode="L")
    write_sheet(folder / "sheet.png", contact_sheet([np.zeros((20, 20, 3), np.uint8)], ["1"]))
    plot_curve(label_points(), "curve", folder / "curve.png")
    pictures = load_pictures(scan([folder]), size=16, rule="crop")
    assert pictures.array.shape == (16, 16, 16, 1)  # not of three channels, as the sheets have
    assert [Path(path).name for path, _ in pictures.skipped] == ["curve.png", "sheet.png"]
    assert {reason for _, reason in pictures.skipped} == {"a sheet or plot that tinyssl made"}
