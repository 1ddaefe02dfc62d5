"""The progress line, by a clock of the test's own."""

from __future__ import annotations

import io

import pytest

from maxdl_tf.progress import Progress, duration


class _Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_intervals():
    clock, stream = _Clock(), io.StringIO()
    with Progress("converting", 100, stream=stream, plain_seconds=20, clock=clock) as progress:
        for _ in range(100):
            clock.now += 0.5  # 2 images per second
            progress.advance()
    assert stream.getvalue().splitlines() == [
        "converting  40/100 images  2 images/s  ETA 0:30",
        "converting  80/100 images  2 images/s  ETA 0:10",
        "converting  100/100 images  2 images/s  in 0:50",
    ]


def test_a_resumed_training_is_rated_by_its_own_steps():
    clock, stream = _Clock(), io.StringIO()
    progress = Progress(
        "training", 1000, "steps", images_per_unit=8, done=900, stream=stream, plain_seconds=10, clock=clock
    )
    for _ in range(10):
        clock.now += 1.0
        progress.advance(note="loss 4.21")
    assert stream.getvalue() == "training  910/1000 steps  8 images/s  ETA 1:30  loss 4.21\n"
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines()[1:] == ["training  910/1000 steps  8 images/s  in 0:10  loss 4.21"]


def test_the_slow_first_step_does_not_spoil_the_eta():
    clock, stream = _Clock(), io.StringIO()
    progress = Progress("training", 1000, "steps", stream=stream, plain_seconds=100, clock=clock)
    clock.now += 60  # TensorFlow traces the graph.
    progress.advance()
    for _ in range(40):
        clock.now += 1
        progress.advance()
    assert "  1 steps/s  ETA 15:59" in stream.getvalue()


def test_compiling_and_evaluating_do_not_spoil_the_eta():
    clock, stream = _Clock(), io.StringIO()
    progress = Progress("training", 100, "steps", stream=stream, plain_seconds=20, clock=clock)
    clock.now += 60  # Compiling.
    for _ in range(25):
        progress.advance()
        clock.now += 1
    progress.restart_rate()
    clock.now += 600  # Evaluating.
    for _ in range(25):
        progress.advance()
        clock.now += 1
    assert stream.getvalue().splitlines() == [
        "training  1/100 steps",
        "training  21/100 steps  1 steps/s  ETA 1:19",
        "training  26/100 steps",
        "training  46/100 steps  1 steps/s  ETA 0:54",
    ]


def test_a_terminal_line_is_redrawn_in_place(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    clock, stream = _Clock(), _Terminal()
    progress = Progress("training", 4, "steps", stream=stream, clock=clock)
    for _ in range(2):
        clock.now += 1
        progress.advance(note="loss 4.2")
    progress.say("checkpoint written")
    clock.now += 2
    progress.advance(2, note="loss")
    progress.close()
    drawn = stream.getvalue()
    assert drawn.count("\n") == 2 and drawn.endswith("\n")
    frames = [frame for line in drawn.splitlines() for frame in line.split("\r") if frame.strip()]
    bar = frames[1].split("]")[0].split("[")[1]
    assert frames[1].startswith("training  [#")
    assert len(bar) == bar.count("#") + bar.count(".") and abs(bar.count("#") - bar.count(".")) <= 1  # Half is done.
    assert frames[1].endswith("2/4 steps  1 steps/s  ETA 0:02  loss 4.2")
    assert "checkpoint written" in frames
    assert max(len(frame) for frame in frames) < 80


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (7, "0:07"), (59.6, "1:00"), (1420, "23:40"), (7391, "2:03:11")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
