"""A training that hangs is reported once; a slow one is not reported."""

from __future__ import annotations

from maxdl_tf.training.watchdog import Watchdog


class _Run:
    """A watchdog with a clock of the test's own."""

    def __init__(self):
        self.now, self.said = 0.0, []
        self.dog = Watchdog(self.said.append, clock=lambda: self.now)

    def wait(self, seconds):
        self.now += seconds
        self.dog.check()

    def steps(self, *durations):
        for seconds in durations:
            self.wait(seconds)
            self.dog.beat()


def test_a_stop_is_told_once_and_so_is_that_it_goes_on():
    run = _Run()
    run.steps(300, 7, 7, 8)  # The first one compiles.
    run.wait(69)
    assert not run.said
    for _ in range(3):
        run.wait(10)
    assert len(run.said) == 1 and "no step has ended for 79 s, which usually takes 7 s; is the input" in run.said[0]
    run.steps(1)
    assert run.said[1:] == ["it goes on, after 100 s"]
    run.steps(7, 69)
    assert len(run.said) == 2
    run.wait(71)
    assert len(run.said) == 3


def test_short_steps_have_a_minute():
    run = _Run()
    run.steps(60, 0.1, 0.1)
    run.wait(59)
    assert not run.said
    run.wait(2)
    assert len(run.said) == 1


def test_what_lies_between_does_not_count():
    run = _Run()
    run.steps(60, 1, 1)
    run.now += 1000  # It evaluates.
    with run.dog.watching():
        run.wait(30)
    assert not run.said
