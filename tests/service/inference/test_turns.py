"""Turns: a few at a time, in the order of asking."""

import contextlib
import threading

from service.inference.turns import Turns
from tests.servers import until


def test_turns_are_taken_in_the_order_of_asking():
    turns, order, release = Turns(1), [], threading.Event()

    def work(name):
        with turns.taken():
            order.append(name)
            release.wait(20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for waiting, thread in enumerate(threads):
        thread.start()
        until(lambda waiting=waiting: len(turns._waiting) == waiting and order)
    release.set()
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2, 3, 4]
    assert turns._free == 1


def test_a_busy_model_cannot_take_anothers_turn():
    """It asks again at once, a thousand times; the other is next all the same."""
    turns, stop, others = Turns(1), threading.Event(), []

    def busy():
        while not stop.is_set():
            with turns.taken():
                pass

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(1000):
            with turns.taken():
                others.append(1)
    finally:
        stop.set()
        thread.join(20)
    assert len(others) == 1000


def test_as_many_at_once_as_the_limit_says_and_a_failure_gives_its_turn_back():
    turns, inside, go = Turns(2), [], threading.Event()

    def work():
        with turns.taken():
            inside.append(1)
            go.wait(20)
            raise ValueError

    def quietly():
        with contextlib.suppress(ValueError):
            work()

    threads = [threading.Thread(target=quietly) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(inside) == 2 and len(turns._waiting) == 1)
    go.set()
    for thread in threads:
        thread.join(20)
    assert len(inside) == 3
    assert turns._free == 2
