"""What a running job shows of itself: lines, a bar, a status file, a loss curve. Times are made up."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from ipdiff import cli
from ipdiff.errors import IntegrityError, Preempted, UserError
from ipdiff.pipeline.progress import curve, reporter, sinks, status
from ipdiff.pipeline.progress.curve import Curve
from ipdiff.pipeline.progress.pace import Pace, amount, duration
from ipdiff.pipeline.progress.reporter import Reporter
from ipdiff.pipeline.progress.status import SILENT_S, Status
from ipdiff.work import progress

NUMBERS = {"gradient_norm": 2.0, "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Pace


def test_a_rate_is_that_of_late_and_tells_what_is_left() -> None:
    pace = Pace("updates", 4000, 1000, started=0.0)
    assert str(pace) == "1000/4000 updates"
    for second in range(1, 101):
        pace.tell(1000 + second, {"loss": 0.05}, second)
    for second in range(101, 201):
        pace.tell(1100 + 10 * (second - 100), {"loss": 0.04}, second)
    assert pace.rate == pytest.approx(10)
    assert pace.left == pytest.approx(190)
    assert str(pace) == "2100/4000 updates, loss 0.04, 10/s, 3 min left"
    assert pace.totals(200.0) == "2100 updates in 3 min, 5.5/s, loss 0.04, the first 1000 updates were there"


def test_what_was_there_before_counts_for_no_rate() -> None:
    pace = Pace("images", 300, 200, started=0.0)
    assert pace.rate is pace.left is None
    pace.tell(200, {}, 50.0)
    assert pace.left is None  # nothing was done: no division by a rate of 0
    pace.tell(250, {}, 100.0)
    assert pace.left == pytest.approx(100)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (6300, "1 h 45 min"), (200000, "2 d 7 h")],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (35_200_000, "35.2 MB")])
def test_bytes_in_words(count: int, text: str) -> None:
    assert amount(count, "bytes") == text


# Lines and bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(told: Reporter, seconds: range, total: int, per_second: int = 10) -> None:
    for second in seconds:
        told.tell(min(total, second * per_second), {"loss": 1 / second}, float(second))
        told.tick(float(second))


def test_lines_come_after_10_s_and_then_every_30_and_the_last_has_totals() -> None:
    said = io.StringIO()
    told = Reporter("runs/a", said, now=0.0)
    told.begin("updates", 750, 0, 0.0)
    work(told, range(1, 76), 750)
    times, names, texts = zip(*(line.split(" ", 3)[1:] for line in said.getvalue().splitlines()), strict=True)
    assert all(len(clock.split(":")) == 3 for clock in times)
    assert set(names) == {"runs/a:"}
    assert list(texts) == [
        "100/750 updates, loss 0.1, 10/s, 65 s left",
        "400/750 updates, loss 0.025, 10/s, 35 s left",
        "700/750 updates, loss 0.01429, 10/s, 5 s left",
        "750 updates in 75 s, 10/s, loss 0.01333",
    ]


def test_what_is_short_says_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        told = Reporter("runs/a", stream, now=0.0)
        told.begin("updates", 40, 0, 0.0)
        work(told, range(1, 5), 40)
        told.erase()
        assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_after_5_s_and_keeps_the_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    screen = Terminal()
    told = Reporter("runs/a", screen, processes=2, now=0.0)
    told.begin("updates", 100, 0, 0.0)
    work(told, range(1, 11), 100)
    *bars, last = screen.getvalue().split("\r\x1b[K")[1:]
    assert bars[0] == "runs/a (2 processes): [##########..........] 50/100 updates, loss 0.2"[:69]
    assert len(bars) == 5
    assert all(len(bar) < 70 for bar in bars)
    assert last.endswith("runs/a (2 processes): 100 updates in 10 s, 10/s, loss 0.1\n")


def test_whoever_wants_it_quiet_gets_a_status_file_alone() -> None:
    for stream in (io.StringIO(), Terminal()):
        told = Reporter("runs/a", stream, quiet=True, now=0.0)
        told.keep_status(Status("runs/a"), 0.0)
        told.begin("updates", 750, 0, 0.0)
        work(told, range(1, 76), 750)
        assert stream.getvalue() == ""
        assert status.read("runs/a") is not None


def test_long_work_that_counts_nothing_is_no_silence() -> None:
    said = io.StringIO()
    told = Reporter("metrics/a", said, now=0.0)
    told.tick(100.0)
    assert said.getvalue() == ""  # it waits for its turn, or reads
    told.keep_status(Status("metrics/a"), 101.0)
    told.tick(135.0)
    assert [line.split(" ", 2)[2] for line in said.getvalue().splitlines()] == [
        f"metrics/a: at work for {seconds}" for seconds in ("2 min", "2 min")
    ]


def test_a_stream_that_nobody_reads_stops_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    told = Reporter("runs/a", stream, now=0.0)
    told.begin("updates", 1000, 0, 0.0)
    work(told, range(1, 51), 1000)
    with pytest.raises(BrokenPipeError):
        stream.close()
    work(told, range(51, 101), 1000)


# The status file


def test_a_job_is_seen_while_it_runs_and_forgotten_when_it_is_done() -> None:
    with reporter.job("runs/a/8", 2) as told:
        assert status.read("runs/a/8") is None  # it may be waiting for another one
        told.keep_status(Status("runs/a/8", processes=2))
        progress.begin("updates", 8)
        progress.tell(3, loss=0.5, gradient_norm=math.inf)
        status.write(told.status or Status(""))
        (seen,) = status.read_all()
        assert (seen.cell, seen.pid, seen.processes) == ("runs/a/8", os.getpid(), 2)
        assert (seen.unit, seen.done, seen.total, seen.numbers) == ("updates", 3, 8, {"loss": 0.5})
        assert seen.standing(seen.time) == ("running", "")
    assert list(status.FOLDER.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UserError("images are missing"), "failed", "images are missing"),
        (IntegrityError("a.npy", "1", "2"), "failed", "a.npy: expected 1, found 2; the file was changed or damaged"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (MemoryError("8 GB"), "failed", "MemoryError: 8 GB"),
        (Preempted("run me again"), "stopped", "run me again"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
    ],
)
def test_how_a_job_ended_is_left_behind(error: BaseException, state: str, reason: str) -> None:
    with pytest.raises(type(error)), reporter.job("runs/a/8", 1) as told:
        told.keep_status(Status("runs/a/8"))
        raise error
    (left,) = status.read_all()
    assert (left.state, left.reason[: len(reason)]) == (state, reason)
    assert left.standing(left.time + 10 * SILENT_S)[0] == state
    with reporter.job("runs/a/8", 1) as told:
        told.keep_status(Status("runs/a/8"))
    assert list(status.read_all()) == []


def test_who_fails_before_its_turn_does_not_speak_for_the_one_that_runs() -> None:
    status.write(Status("runs/a/8", done=5))
    with pytest.raises(UserError), reporter.job("runs/a/8", 1):
        raise UserError("an input is missing")
    assert [left.state for left in status.read_all()] == ["running"]
    status.remove("runs/a/8")
    with pytest.raises(UserError), reporter.job("runs/a/8", 1):
        raise UserError("an input is missing")
    assert [left.reason for left in status.read_all()] == ["an input is missing"]


def test_a_dead_process_has_failed_and_a_far_one_is_silent() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here = Status("a", pid=child.pid)
    assert here.standing(here.time)[0] == "failed"
    far = Status("a", pid=child.pid, host="elsewhere")
    assert far.standing(far.time + SILENT_S - 1) == ("running", "")
    assert far.standing(far.time + SILENT_S + 1)[0] == "silent"


def test_what_starter_knows_of_an_end_is_said_where_the_job_has_not() -> None:
    status.write(Status("a"))
    status.ended("a", "failed", "exit code 1")
    status.ended("a", "stopped", "exit code 75")
    assert [(left.state, left.reason) for left in status.read_all()] == [("failed", "exit code 1")]
    status.ended("b", "failed", "exit code 1")
    assert status.read("b") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"cell": 1}', '{"cell": "a", "pid": "1"}', '{"cell": "a", "numbers": {"loss": "x"}}']
)
def test_a_file_that_is_no_status_is_passed_over(text: str) -> None:
    status.FOLDER.mkdir(parents=True)
    (status.FOLDER / "a.json").write_text(text)
    assert list(status.read_all()) == []


def test_a_folder_that_cannot_be_written_stops_nothing() -> None:
    Path("work").write_text("no folder")
    with reporter.job("runs/a", 1) as told:
        told.keep_status(Status("runs/a"))
        progress.begin("images", 2)
        progress.tell(2)
    with pytest.raises(UserError, match="wrong"), reporter.job("runs/a", 1):
        raise UserError("wrong")


# The loss curve


def train(folder: Path, start: int, end: int, *, stop: int | None = None, wanted: tuple[str, ...] = ()) -> None:
    """Tell of a training from update `start` to `end`, or `stop`."""
    told = Curve(folder, 8, wanted)
    told.begin("updates", end, start)
    for step in range(start + 1, (stop or end) + 1):
        told.tell(step, {"loss": float(step), **NUMBERS})
    told.close()


def rows(folder: Path) -> list[tuple[int, int, float]]:
    return [(row["step"], row["updates"], row["loss"]) for row in curve.read(folder / curve.FILE)]


def test_a_curve_has_a_row_for_fifty_updates_and_one_for_the_rest(tmp_path: Path) -> None:
    train(tmp_path / "logs", 0, 120)
    assert rows(tmp_path / "logs") == [(50, 50, 25.5), (100, 50, 75.5), (120, 20, 110.5)]
    (row, *_) = curve.read(tmp_path / "logs/train.jsonl")
    assert set(row) == {"step", "updates", "loss", *NUMBERS, "images_per_second", "time"}
    assert row["images_per_second"] > 0
    train(tmp_path / "logs", 120, 160)
    assert [step for step, _, _ in rows(tmp_path / "logs")] == [50, 100, 120, 150, 160]


def test_a_training_that_goes_on_drops_what_it_does_again(tmp_path: Path) -> None:
    train(tmp_path, 0, 300, stop=270)
    train(tmp_path, 130, 300)  # the last state was saved at 130
    assert rows(tmp_path) == [(50, 50, 25.5), (100, 50, 75.5), (150, 20, 140.5)] + [
        (step, 50, step - 24.5) for step in (200, 250, 300)
    ]
    train(tmp_path, 0, 50)  # with other parameters
    assert rows(tmp_path) == [(50, 50, 25.5)]


@pytest.mark.parametrize("tail", [b'{"step": 150, "lo', b"\xff\xfe\n", b"[1]\n", b'{"step": 100}\n{"step": 150}\n'])
def test_a_torn_or_strange_row_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    train(tmp_path, 0, 100)
    path = tmp_path / curve.FILE
    path.write_bytes(path.read_bytes() + tail)
    train(tmp_path, 100, 200)
    assert [step for step, _, _ in rows(tmp_path)] == [50, 100, 150, 200]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    told = Curve(tmp_path, 8)
    told.begin("updates", 2, 0)
    told.tell(1, {"loss": math.nan, "gradient_norm": math.inf, "learning_rate": 0.1})
    told.tell(2, {"loss": 1.0, **NUMBERS})
    (line,) = (tmp_path / curve.FILE).read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)
    assert row["loss"] is row["gradient_norm"] is None


def test_a_place_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("no folder")
    train(tmp_path / "logs", 0, 200)
    assert capsys.readouterr().err.count("the loss curve is not written on\n") == 1


# Sinks


@pytest.mark.skipif(util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_a_sink_that_is_not_installed_is_one_line() -> None:
    with pytest.raises(UserError, match=r"work.sinks names tensorboard, .* pip install 'ipdiff\[watch\]'"):
        Curve(Path(), 8, ["tensorboard"])


@pytest.mark.skipif(util.find_spec("tensorboard") is None, reason="not installed: ipdiff[watch]")
def test_tensorboard_reads_the_curve_without_repeats() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(Path("logs/runs/a"), 0, 100)  # before it was asked for
    train(Path("logs/runs/a"), 100, 300, stop=270, wanted=("tensorboard",))
    train(Path("logs/runs/a"), 130, 300, wanted=("tensorboard",))
    found = EventAccumulator("logs/runs/a").Reload()
    assert found.Tags()["scalars"] == list(sinks.SHOWN)
    shown = [(event.step, event.value) for event in found.Scalars("loss")]
    assert shown == [(step, loss) for step, _, loss in rows(Path("logs/runs/a"))]
    sinks.measured(Path("logs/metrics/a"), 8, "ancestral-5", {"fid": 3.5})
    sinks.measured(Path("logs/metrics/a"), 4, "ancestral-5", {"fid": 4.5})
    shown = EventAccumulator("logs/metrics/a").Reload().Scalars("fid/ancestral-5")
    assert {(event.step, event.value) for event in shown} == {(8, 3.5), (4, 4.5)}


@pytest.mark.skipif(util.find_spec("dvclive") is None, reason="not installed: ipdiff[watch]")
def test_dvclive_has_the_rows_of_the_curve() -> None:
    train(Path("logs/a"), 0, 300, stop=270, wanted=("dvclive",))
    train(Path("logs/a"), 130, 300, wanted=("dvclive",))
    _, *lines = Path("logs/a/dvclive/plots/metrics/loss.tsv").read_text().splitlines()
    told = [(int(step), float(loss)) for step, loss in map(str.split, lines)]
    assert told == [(step, loss) for step, _, loss in rows(Path("logs/a"))]


def test_files_that_were_compared_leave_no_status(tmp_path: Path) -> None:
    assert cli.main(["evaluate", "a.npz", "--reference", "b.npz"]) == 2
    assert not status.FOLDER.exists()
