"""Breaks files in random ways and posts them, one after the other, for some minutes.

    python -m tests.hostile.fuzz DIRECTORY --minutes 60 --findings FOLDER

Each finding (5xx, no answer, a dead decoder, an answer that took long) is saved under its seed. The same corpus and
`--seed` make the same files again. Exit code 1: an answer of 5xx, none at all, or a server that died.
"""

import argparse
import itertools
import sys
import time
from collections import Counter
from pathlib import Path

from service.errors import DecoderDied, DecodingTooCostly
from tests.hostile.mutation import bodies, broken
from tests.hostile.target import MODELS, Sample, Tally, Target

SLOW_SECONDS = 5.0
DEAD = tuple(f"{error.status} {error.code}" for error in (DecoderDied, DecodingTooCostly))
TOLD_SECONDS = 60.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="directories of images, or images")
    parser.add_argument("--url", help="a server that runs already; default: one of our own")
    parser.add_argument("--models", nargs="+", default=MODELS, help="asked in turn")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="the first one; each execution takes the next")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="where they are saved")
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    with Target(options.url) as target:
        return run(target, options)


def run(target, options):
    corpus = bodies(options.paths)
    tally, found, connection = Tally(), Counter(), target.connect()
    start = told = time.monotonic()
    for seed in itertools.count(options.seed):
        if (now := time.monotonic()) > start + options.minutes * 60:
            break
        if now > told:
            told += TOLD_SECONDS
            tell(now - start, tally, target)
        body = broken(seed, corpus)
        answer = target.post(connection, f"/predict/{options.models[seed % len(options.models)]}", body)
        is_fault = tally.add(f"seed {seed}", answer)
        if is_fault or answer.seconds > SLOW_SECONDS or answer.outcome in DEAD:
            found[answer.outcome] += 1
            (options.findings / f"{seed}-{answer.outcome.replace(' ', '-')}").write_bytes(body)
    tell(time.monotonic() - start, tally, target)
    tally.report()
    print(f"findings, in {options.findings}: {dict(found) or 'none'}")
    return int(not target.report() or bool(tally.faults))


def tell(seconds, tally, target):
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in tally.outcomes.most_common())
    print(f"{seconds:6.0f} s: {tally.outcomes.total():,} executions: {outcomes}", flush=True)
    if target.pid is not None:
        print(f"          {Sample.of(target.pid)}; decoders died: {target.decoder_deaths()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
