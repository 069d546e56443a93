import os
import signal
import threading

import pytest

from ganomaly_jax.core import signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_once_and_its_handler_given_back(number):
    before = signal.getsignal(number)
    with signals.noted(number) as came:
        os.kill(os.getpid(), number)
        assert came == [number]
        assert signal.getsignal(number) is before  # a second one ends the process as usual
    assert signal.getsignal(number) is before


def test_another_thread_leaves_the_handlers_alone():
    seen = []

    def work():
        with signals.noted() as came:
            seen.append((came, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], signal.getsignal(signal.SIGTERM))]
