"""File descriptors: how many this process may open, and how many connections that allows."""

import resource

import structlog

log = structlog.get_logger()

# For models, decoders, conversions, uploads, and connections that are refused because there are too many.
KEPT_FREE = 200


def raise_limit() -> None:
    """Raises the limit of this process as far as the system allows. Clients soon reach the usual limit of 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.warning("the limit of file descriptors cannot be raised", limit=soft, wanted=hard, reason=str(error))


def connection_limit(wanted: int) -> int:
    """The number of connections wanted, reduced to what the file descriptors allow; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    limit = max(1, min(wanted, soft - min(KEPT_FREE, soft // 2)))
    if limit < wanted:
        log.warning("fewer connections are possible than wanted", limit=limit, wanted=wanted, cure="raise `ulimit -n`")
    return limit
