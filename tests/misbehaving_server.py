"""`menagerie` with decoders that misbehave on marked images."""

import os
from functools import partial
from pathlib import Path

from service.__main__ import main
from service.images import decode_pool
from service.images.fork_server import ForkServer

if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # the fork server looks for its module there alone
    decode_pool.ForkServer = partial(ForkServer, module="tests.decoders")
    main()
