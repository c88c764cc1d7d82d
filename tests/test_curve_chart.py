"""The label curve in the report."""

import pytest

from tests.making import label_points
from tinyssl.reporting.curve_chart import label_curve_chart, label_curve_words


def test_every_line_is_drawn_with_its_intervals() -> None:
    figure = label_curve_chart(label_points()).figure
    names = [trace["name"] for trace in figure["data"]]
    assert names == [
        "linear on the frozen encoder, random choice",
        "linear on the frozen encoder, typiclust choice",
        "fine-tuned from random weights, random choice",
        "fine-tuned from random weights, typiclust choice",
    ]
    first = figure["data"][0]
    assert first["y"] == pytest.approx([42, 60])
    assert first["error_y"]["array"] == [2, 2]
    assert first["customdata"] == [2, 20]
    assert figure["layout"]["xaxis"]["tickvals"] == [2, 20]


def test_lines_differ_without_colour_and_stay_apart() -> None:
    data = label_curve_chart(label_points()).figure["data"]
    colours = [trace["meta"]["colour"] for trace in data]
    assert colours == [0, 0, 1, 1]
    single = label_curve_chart(label_points("linear")).figure["data"]
    assert [trace["meta"]["colour"] for trace in single] == [0, 1]
    assert data[0]["line"]["dash"] != data[1]["line"]["dash"]
    assert data[0]["marker"]["symbol"] != data[1]["marker"]["symbol"]
    assert len({trace["x"][0] for trace in data}) == 4
    assert [trace["x"][0] for trace in data] == pytest.approx([2] * 4, rel=0.05)


def test_words_tell_the_best_at_both_ends() -> None:
    assert label_curve_words(label_points()) == (
        "Best on average with 2 labels: linear on the frozen encoder, typiclust choice, "
        "52.0 ± 2.0 %; with 20 labels: linear on the frozen encoder, typiclust choice, "
        "70.0 ± 2.0 %."
    )
    assert label_curve_words(label_points(labels=(8,))).count("labels:") == 1


def test_what_it_shows_is_also_told() -> None:
    told = label_curve_chart(label_points("linear")).told
    assert "linear on the frozen encoder, random choice: 42.0 ± 2.0 % with 2, 60.0" in told
