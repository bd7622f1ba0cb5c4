"""Every setting: one frozen value, read from the environment once."""

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "MENAGERIE_"
MIB = 1024 * 1024
Delay = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Timeout = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]

# Kubernetes describes a service called menagerie in variables of its own: MENAGERIE_SERVICE_HOST, MENAGERIE_PORT=tcp://...
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_[0-9]+_|_PORT$")

DEFAULT_PORT = 8000
MAX_DECODERS = 128  # one process of Python hands out no more images than these decode
DEFAULT_CONVERSION_MEMORY_BYTES = 8 * 1024 * MIB
DEFAULT_REPOSITORY = Path(__file__).parent.parent / "models" / "repository"


class Settings(BaseSettings):
    """Each field is read from `MENAGERIE_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    # What is served.
    repository: Path = Field(DEFAULT_REPOSITORY, description="Directory of the models to serve")
    cache: Path = Field(Path("~/.cache/menagerie"), description="Directory for converted models")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names of the models to serve, separated by commas; none means all"
    )
    convert: bool = Field(default=True, description="Convert what is not in the cache; off where no framework is")
    allow_code: bool = Field(
        default=False, description="Convert TorchScript, torch.export and SavedModel, which runs code that they carry"
    )
    poll_seconds: Delay = Field(
        0.0, description="How often to look for new versions in the repository; 0 looks once, at the start"
    )
    conversion_timeout_seconds: Timeout = Field(1800, description="A conversion that takes longer is killed")
    conversion_memory_bytes: PositiveInt = Field(
        DEFAULT_CONVERSION_MEMORY_BYTES,
        description="A conversion that has more in memory, or 90 % of what was free, is killed; several run at once "
        "where so much is free for each",
    )
    check_timeout_seconds: Timeout = Field(
        300, description="A check of a published version, which a child opens first, is killed if it takes longer"
    )
    check_memory_bytes: PositiveInt = Field(
        DEFAULT_CONVERSION_MEMORY_BYTES,
        description="A check that has more in memory, or 90 % of what was free, is killed",
    )

    # Where.
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: NonNegativeInt = Field(DEFAULT_PORT, le=65535, description="Port to listen on; 0 takes a free one")

    # Connections.
    max_connections: PositiveInt = Field(
        10_000, description="Connections at once, at most; then 503, but for GET /health/"
    )
    max_head_bytes: PositiveInt = Field(
        16_384, description="Bytes of a request's line and headers, or of its trailers, at most; then 431"
    )
    max_head_lines: PositiveInt = Field(100, description="Header lines of a request, at most; then 431")
    max_url_bytes: PositiveInt = Field(8192, description="Bytes of a URL, at most; then 414")
    head_timeout_seconds: Timeout = Field(
        10.0, description="A request's line and headers that take longer to arrive become a 408"
    )
    keep_alive_seconds: Timeout = Field(75.0, description="How long a connection may wait for its next request")
    write_timeout_seconds: Timeout = Field(
        30.0, description="A client that does not read its answer for so long is disconnected"
    )
    linger_seconds: Timeout = Field(
        5.0, description="How long, after an answer that came before the request's end, the rest of it is read"
    )
    max_linger_bytes: PositiveInt = Field(
        64 * MIB, description="Bytes of a request read after its answer, at most; then it is cut off"
    )

    # The engine.
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="Where models run: auto is CUDA where there is a GPU, else the CPU"
    )
    require_gpu: bool = Field(default=False, description="Refuse to serve a model that fell back to the CPU")
    device_id: NonNegativeInt = Field(0, description="Which GPU")
    intra_op_threads: NonNegativeInt = Field(0, description="Threads of one inference on the CPU; 0 is every core")

    # Batching.
    max_batch_size: NonNegativeInt = Field(
        0,
        le=1024,
        description="Images in one engine call, at most; 0 is 32 on a GPU, and 16 on a CPU, where more cost memory",
    )
    max_queue_delay_seconds: Delay = Field(
        0.0,
        description="How long the oldest image may wait for company; at a busy engine, 0.05 s in any case",
    )
    max_queue_images: PositiveInt = Field(512, description="Images decoded or waiting for one model, at most; then 429")
    max_queue_bytes: PositiveInt = Field(256 * MIB, description="Bytes of their pixels, at most; then 429")

    # Requests.
    request_timeout_seconds: Timeout = Field(30.0, description="An answer that takes longer becomes a 504")
    body_timeout_seconds: Timeout = Field(
        15.0, description="A body that takes longer to arrive becomes a 408, and an upload that stalls as long"
    )
    max_body_bytes: PositiveInt = Field(32 * MIB, description="Bytes of one request's body, at most; then 413")
    max_inflight_body_bytes: PositiveInt = Field(
        512 * MIB, description="Bytes of all bodies being received and decoded, at most; then 429"
    )
    max_images_per_request: PositiveInt = Field(64, description="Images in one request, at most")
    max_image_pixels: PositiveInt = Field(50_000_000, description="Pixels of one image by its header, at most")
    decoders: NonNegativeInt = Field(
        0, le=MAX_DECODERS, description="Processes that decode images; 0 is one more than cores"
    )
    decode_timeout_seconds: Timeout = Field(10.0, description="An image that takes longer to decode becomes a 422")
    decoder_memory_bytes: PositiveInt = Field(
        1024 * MIB, description="Memory that decoding one image may take, at most; then 422"
    )
    max_decode_images: PositiveInt = Field(512, description="Images waiting to be decoded, at most; then 429")
    max_decode_pixels: PositiveInt = Field(
        500_000_000,
        description="Pixels, by their headers, of all pictures of over 4 megapixels that wait to be decoded, at most; "
        "then 429",
    )
    simd: bool = Field(
        default=True,
        description="Decode and resize with SIMD: up to 3 % of the values 1 of 255 off Pillow's; off is Pillow alone",
    )
    jpeg_margin: NonNegativeFloat = Field(
        4.0,
        allow_inf_nan=False,
        description="Decode a JPEG at 1/2, 1/4 or 1/8 where at least so many times the pixels that the model needs are "
        "left of each side; 0 decodes in full",
    )

    # The admin API.
    admin_token: SecretStr | None = Field(
        None, min_length=16, description="Whoever sends it may use the admin API; without one there is none"
    )
    max_upload_bytes: PositiveInt = Field(
        8 * 1024 * MIB, description="Bytes of one uploaded version, at most; then 413"
    )
    min_free_disk_bytes: NonNegativeInt = Field(
        256 * MIB, description="Bytes of the repository's disk that an upload leaves free; else 507"
    )

    # Stopping.
    drain_delay_seconds: Delay = Field(
        3.0, description="After SIGTERM, how long requests are still accepted while readiness says 503"
    )
    grace_seconds: Timeout = Field(25.0, description="After SIGTERM, when the process ends in any case, with code 1")

    # Telling.
    log_format: Literal["auto", "text", "json"] = Field("auto", description="auto is text on a terminal, else JSON")
    log_requests: Literal["all", "failed", "none"] = Field(
        "failed", description="Which requests get a line in the log; failed are those answered with an error"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level to log")

    @field_validator("repository", "cache")
    @classmethod
    def _at_home(cls, path: Path) -> Path:
        return path.expanduser()

    @field_validator("port", mode="before")
    @classmethod
    def _unlinked(cls, value: object) -> object:
        return DEFAULT_PORT if isinstance(value, str) and value.startswith("tcp://") else value

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.drain_delay_seconds >= self.grace_seconds:
            raise ValueError("drain_delay_seconds must be less than grace_seconds: what waits is answered in between")
        if 0 < self.jpeg_margin < 1:
            raise ValueError("jpeg_margin is 0, or 1 and more: no picture can be reduced below what the model needs")
        for bound in ("max_queue_images", "max_decode_images"):
            if getattr(self, bound) < self.max_images_per_request:
                raise ValueError(f"{bound} is less than max_images_per_request: a full request could not be served")
        known = {PREFIX + name.upper() for name in type(self).model_fields}
        given = (name for name in os.environ if name.startswith(PREFIX) and not _SERVICE_LINK.search(name))
        if unknown := sorted(name for name in given if name not in known):
            near = get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"there is no setting {unknown[0]}{hint}")
        return self
