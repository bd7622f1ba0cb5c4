"""`menagerie` with decoders that misbehave on marked images."""

from functools import partial

from service import decode_pool
from service.__main__ import main
from service.fork_server import ForkServer

if __name__ == "__main__":
    decode_pool.ForkServer = partial(ForkServer, module="tests.decoders")
    main()
