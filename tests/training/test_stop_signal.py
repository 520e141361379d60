"""A signal becomes a wish; an echo changes nothing, a second one later acts."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from training import stop_signal
from training.stop_signal import StopSignal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


def test_the_first_is_noted_and_an_echo_is_not_a_second():
    before = handlers()
    with StopSignal() as stop:
        assert stop.asked == ""
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun's, a moment after the terminal's
        assert stop.asked == "SIGTERM"
    assert handlers() == before
    with stop:
        assert stop.asked == ""


def test_a_second_one_later_acts(monkeypatch):
    monkeypatch.setattr(stop_signal, "ECHO_S", -1.0)
    # A shell's background job begins with SIGINT ignored, and then nothing would be raised.
    original = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        before = handlers()
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert handlers() == before
    finally:
        signal.signal(signal.SIGINT, original)


def test_signals_are_left_alone_where_nobody_listens():
    before = handlers()
    with StopSignal(listen=False):
        assert handlers() == before
    seen = []

    def elsewhere() -> None:
        with StopSignal():
            seen.append(handlers())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
