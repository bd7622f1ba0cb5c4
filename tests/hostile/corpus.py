"""Posts files to a server, each twice, and counts the answers.

    python -m tests.hostile.corpus DIRECTORY

Exit code 1: an answer of 5xx, none at all, a good picture answered wrongly, or a server that died.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from queue import Empty, SimpleQueue

from PIL import Image

from tests.hostile.mutation import files
from tests.hostile.target import MODELS, Tally, Target, together
from tests.images import jpeg

GREEN = jpeg(Image.new("RGB", (64, 48), (20, 200, 40)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="directories of images, or images")
    parser.add_argument("--url", help="a server that runs already; default: one of our own")
    parser.add_argument("--models", nargs="+", default=MODELS, help="the first is asked in the first round, and so on")
    parser.add_argument("--rounds", type=int, default=2, help="how often each file is posted")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--good", type=int, default=10, metavar="N", help="each client posts a good picture after N")
    options = parser.parse_args()
    with Target(options.url) as target:
        return run(target, options)


def run(target, options):
    tally, good, work = Tally(), Tally(right="200" if options.url else "200 green"), SimpleQueue()
    for model in itertools.islice(itertools.cycle(options.models), options.rounds):
        for file in files(options.paths):
            work.put((file, f"/predict/{model}?top_k=1"))

    def client(_):
        connection = target.connect()
        for count in itertools.count(1):
            try:
                file, path = work.get_nowait()
            except Empty:
                return
            tally.add(file, target.post(connection, path, file.read_bytes()))
            if count % options.good == 0:
                good.add(f"after {file}", labelled(target.post(connection, path, GREEN)))

    start = time.monotonic()
    together(client, range(options.clients))
    print(f"{time.monotonic() - start:.0f} s; the files: ", end="")
    tally.report()
    print("a good picture in between: ", end="")
    good.report()
    return int(not target.report() or bool(tally.faults or good.faults))


def labelled(answer):
    """The answer, with the best label in its outcome."""
    if answer.outcome != "200":
        return answer
    return answer._replace(outcome=f"200 {json.loads(answer.body)['predictions'][0]['label']}")


if __name__ == "__main__":
    sys.exit(main())
