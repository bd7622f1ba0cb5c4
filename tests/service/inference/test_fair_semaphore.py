"""The fair semaphore: at most so many threads at once, in the order in which they asked."""

import contextlib
import threading

from service.inference.fair_semaphore import FairSemaphore
from tests.servers import until


def test_threads_acquire_it_in_the_order_in_which_they_asked():
    semaphore, order, release = FairSemaphore(1), [], threading.Event()

    def work(name):
        with semaphore:
            order.append(name)
            release.wait(20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for waiting, thread in enumerate(threads):
        thread.start()
        until(lambda waiting=waiting: len(semaphore._waiting) == waiting and order)
    release.set()
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2, 3, 4]
    assert semaphore._free == 1


def test_a_thread_that_asks_again_at_once_waits_behind_the_others():
    """A thousand times, the other thread is next."""
    semaphore, stop, others = FairSemaphore(1), threading.Event(), []

    def busy():
        while not stop.is_set():
            with semaphore:
                pass

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(1000):
            with semaphore:
                others.append(1)
    finally:
        stop.set()
        thread.join(20)
    assert len(others) == 1000


def test_it_admits_as_many_threads_as_its_limit_and_an_error_releases_it():
    semaphore, inside, go = FairSemaphore(2), [], threading.Event()

    def work():
        with semaphore:
            inside.append(1)
            go.wait(20)
            raise ValueError

    def quietly():
        with contextlib.suppress(ValueError):
            work()

    threads = [threading.Thread(target=quietly) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(inside) == 2 and len(semaphore._waiting) == 1)
    go.set()
    for thread in threads:
        thread.join(20)
    assert len(inside) == 3
    assert semaphore._free == 2
