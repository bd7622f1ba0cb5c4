"""File descriptors: how many this process may have open, and how many connections they hold."""

import resource

import structlog

log = structlog.get_logger()

# For models, decoders, conversions and uploads, and for connections that are only told that there are too many.
KEPT_FREE = 200


def raise_limit() -> None:
    """As many as the system allows this process to ask for: the usual limit of 1,024 is soon reached by clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.warning("the limit of descriptors stays", limit=soft, wanted=hard, reason=str(error))


def connection_limit(wanted: int) -> int:
    """As many connections as wanted, or as the descriptors hold beside everything else; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    limit = max(1, min(wanted, soft - min(KEPT_FREE, soft // 2)))
    if limit < wanted:
        log.warning("there are fewer connections than wanted", limit=limit, wanted=wanted, cure="raise `ulimit -n`")
    return limit
