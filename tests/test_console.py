"""Progress without a terminal: plain lines, not too many, and none that nobody asked for."""

import io
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from rich.console import Console

from tinyssl import console
from tinyssl.run_folder import RunFolder


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


def test_tables_keep_all_their_columns_where_the_terminal_is_narrow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console.print_result("x" * 75)
    assert capsys.readouterr().out == "x" * 75 + "\n"


def test_names_in_tables_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    shown = console.score_table("[b]Scores[/b]", [":cat:"])
    shown.add_row("runs[red]", "1")
    shown.caption = "my[red].yaml: as asked for [/x] :cat:."
    console.print_result(shown)
    told = "".join(capsys.readouterr().out.split())  # captions are folded
    caption = "".join(str(shown.caption).split())
    assert all(name in told for name in ("[b]Scores[/b]", "runs[red]", caption))
    assert told.count(":cat:") == 2


def test_names_in_lines_are_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("skipped 2026-11-30 12:100:07.jpg [red]: empty file")
    assert capsys.readouterr().err == "skipped 2026-11-30 12:100:07.jpg [red]: empty file\n"


def test_a_terminal_that_can_draw_no_bar_gets_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    clock, dumb = [0.0], Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(console, "_CONSOLE", dumb)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, "tinyssl"), console.progress("reading", 100) as advance:
        clock[0] += 20
        advance(40)
    assert [r.getMessage() for r in caplog.records] == ["reading: 40/100 pictures, 2/s, 30 s left"]


def test_a_bar_is_one_line_where_the_terminal_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Console(width=60, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(console, "_CONSOLE", narrow)
    bar = console._bar("pictures")
    bar.add_task("training", total=13192, completed=1083)
    assert len(narrow.render_lines(bar.get_renderable())) == 1


@pytest.mark.parametrize(("rate", "text"), [(12345.6, "12,346"), (10, "10"), (0.123, "0.12")])
def test_rates_are_short(rate: float, text: str) -> None:
    assert console._short(rate) == text


def told_by(setup: str, *options: str) -> str:
    """What a session that says one line of each level has on standard error."""
    code = f"""
import logging
from tinyssl.console import log
{setup}
log.debug("a detail")
log.info("an event")
log.warning("a danger")
"""
    command = [sys.executable, "-q", *options]
    return subprocess.run(command, input=code, capture_output=True, text=True, check=True).stderr


INFO, WARNING = ("an event", "a danger"), ("a danger",)


@pytest.mark.parametrize(
    ("setup", "lines"),
    [
        ("", WARNING),
        ("logging.basicConfig(level=logging.INFO)", INFO),
        ("logging.basicConfig(level=logging.WARNING)", WARNING),
        ("logging.basicConfig()\nlogging.getLogger('tinyssl').setLevel('INFO')", INFO),
        ("logging.basicConfig(level='INFO')\nlogging.getLogger('tinyssl').setLevel('ERROR')", ()),
    ],
)
def test_lines_are_shown_as_the_user_has_set_up(setup: str, lines: tuple[str, ...]) -> None:
    for options in ((), ("-i",)):
        shown = INFO if options and not setup else lines  # there the command line's, unasked
        told = told_by(setup, *options)
        counts = [told.count(text) for text in ("a detail", "an event", "a danger")]
        assert counts == [0, "an event" in shown, "a danger" in shown]


def test_the_log_of_a_run_is_whole_at_any_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    with caplog.at_level(logging.ERROR, "tinyssl"), folder.log_to_file():
        folder.begin_log()
        console.log.debug("a detail")
    assert "DEBUG a detail" in (tmp_path / "train.log").read_text()


def test_runs_in_threads_have_logs_of_their_own(tmp_path: Path) -> None:
    both = Barrier(2)

    def run(name: str) -> str:
        (tmp_path / name).mkdir()
        folder = RunFolder(tmp_path / name)
        with folder.log_to_file():
            both.wait()
            console.log.info(f"early in {name}")
            folder.begin_log()
            console.log.info(f"late in {name}")
            both.wait()
        return (tmp_path / name / "train.log").read_text()

    with ThreadPoolExecutor(2) as pool:
        for name, told in zip("ab", pool.map(run, "ab"), strict=True):
            assert [line.split("INFO ")[1] for line in told.splitlines()] == [
                f"early in {name}", f"late in {name}",
            ]  # fmt: skip


def test_a_log_that_was_silent_is_heard_again(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.CRITICAL)
    try:
        console.log.warning("unheard")
    finally:
        logging.disable(logging.NOTSET)
    console.log.warning("heard")
    with console.silence():
        console.log.warning("silent")
    console.log.warning("again")
    assert [record.message for record in caplog.records] == ["heard", "again"]
