"""Progress without a terminal: plain lines, not too many, with the time left."""

import logging

import pytest

from tinyssl import console


def test_plain_lines_say_how_far_how_fast_and_how_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, "tinyssl"), console.progress("reading", 1000) as advance:
        for _ in range(100):
            clock[0] += 1
            advance(10)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "reading: 150/1,000 pictures, 10/s, 85 s left"
    assert told[-1] == "reading: 1,000/1,000 pictures, 10/s, 0 s left"
    assert len(told) == 7


def test_what_was_done_before_does_not_count_for_the_speed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with (
        caplog.at_level(logging.INFO, "tinyssl"),
        console.progress("training", 1000, done=800) as advance,
    ):
        clock[0] += 20
        advance(40)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "training: 840/1,000 pictures, 2/s, 80 s left"


def test_what_takes_no_time_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tinyssl"), console.progress("reading", 10) as advance:
        advance(10)
    assert not caplog.records


@pytest.mark.parametrize(("rate", "text"), [(12345.6, "12,346"), (10, "10"), (0.123, "0.12")])
def test_rates_are_short(rate: float, text: str) -> None:
    assert console._short(rate) == text
