"""Every setting, read from the environment once and then frozen."""

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

# Kubernetes sets variables for a service called menagerie: MENAGERIE_SERVICE_HOST, MENAGERIE_PORT=tcp://...
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_[0-9]+_|_PORT$")

DEFAULT_PORT = 8000
MAX_DECODERS = 128  # one Python process cannot keep more of them busy
DEFAULT_CONVERSION_MEMORY_BYTES = 8 * 1024 * MIB
DEFAULT_REPOSITORY = Path(__file__).parent.parent / "models" / "repository"


class Settings(BaseSettings):
    """Each field is read from the environment variable `MENAGERIE_` + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    # What is served.
    repository: Path = Field(DEFAULT_REPOSITORY, description="Model repository: the directory of the models to serve")
    cache: Path = Field(Path("~/.cache/menagerie"), description="Directory for converted models")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names of the models to serve, separated by commas; empty serves all"
    )
    convert: bool = Field(
        default=True,
        description="Convert models that are not in the cache; turn it off where no framework is installed",
    )
    allow_code: bool = Field(
        default=False,
        description="Convert TorchScript, torch.export and SavedModel files; this runs code that the files contain",
    )
    poll_seconds: Delay = Field(
        0.0, description="Interval at which the repository is scanned for new versions; 0 scans once, at start-up"
    )
    conversion_timeout_seconds: Timeout = Field(
        1800, description="Time limit of a conversion, which is killed beyond it"
    )
    conversion_memory_bytes: PositiveInt = Field(
        DEFAULT_CONVERSION_MEMORY_BYTES,
        description="Memory limit of a conversion; it is killed beyond it or beyond 90 % of the memory that was free. "
        "Several conversions run at once if this much is free for each",
    )
    check_timeout_seconds: Timeout = Field(
        300,
        description="Time limit of the check that a child process makes of a published version; it is killed beyond it",
    )
    check_memory_bytes: PositiveInt = Field(
        DEFAULT_CONVERSION_MEMORY_BYTES,
        description="Memory limit of that check; it is killed beyond it or beyond 90 % of the memory that was free",
    )

    # The address.
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: NonNegativeInt = Field(DEFAULT_PORT, le=65535, description="Port to listen on; 0 chooses a free one")

    # Connections.
    max_connections: PositiveInt = Field(
        10_000, description="Maximum number of open connections; beyond it the answer is 503, except for GET /health/"
    )
    max_head_bytes: PositiveInt = Field(
        16_384,
        description="Maximum bytes of the request line and headers, or of the trailers; beyond it the answer is 431",
    )
    max_head_lines: PositiveInt = Field(
        100, description="Maximum number of header lines of a request; beyond it the answer is 431"
    )
    max_url_bytes: PositiveInt = Field(8192, description="Maximum bytes of a URL; beyond it the answer is 414")
    head_timeout_seconds: Timeout = Field(
        10.0, description="Time limit for the request line and headers to arrive; beyond it the answer is 408"
    )
    keep_alive_seconds: Timeout = Field(
        75.0, description="How long an idle connection is kept open for its next request"
    )
    write_timeout_seconds: Timeout = Field(
        30.0, description="How long a client may leave its answer unread before it is disconnected"
    )
    linger_seconds: Timeout = Field(
        5.0, description="How long the rest of a request is still read if the answer was sent before the request ended"
    )
    max_linger_bytes: PositiveInt = Field(
        64 * MIB, description="Maximum bytes of that rest; beyond it the connection is closed"
    )

    # The engine.
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="Where models run; auto is CUDA if there is a GPU, otherwise the CPU"
    )
    require_gpu: bool = Field(default=False, description="Refuse to serve a model that would fall back to the CPU")
    device_id: NonNegativeInt = Field(0, description="Index of the GPU to use")
    intra_op_threads: NonNegativeInt = Field(
        0, description="Number of threads for one inference on the CPU; 0 uses every core"
    )

    # Batching.
    max_batch_size: NonNegativeInt = Field(
        0,
        le=1024,
        description="Maximum number of images in one engine call; 0 is 32 on a GPU and 16 on a CPU",
    )
    max_queue_delay_seconds: Delay = Field(
        0.0,
        description="How long an image may wait for others to join its batch; a busy engine may add up to 0.05 s",
    )
    max_queue_images: PositiveInt = Field(
        512, description="Maximum number of images being decoded or waiting for one model; beyond it the answer is 429"
    )
    max_queue_bytes: PositiveInt = Field(
        256 * MIB, description="Maximum bytes of their pixels; beyond it the answer is 429"
    )

    # Requests.
    request_timeout_seconds: Timeout = Field(
        30.0, description="Time limit for a prediction; beyond it the answer is 504"
    )
    body_timeout_seconds: Timeout = Field(
        15.0,
        description="Time limit for a body to arrive, or for an upload to make progress; beyond it the answer is 408",
    )
    max_body_bytes: PositiveInt = Field(
        32 * MIB, description="Maximum bytes of a request body; beyond it the answer is 413"
    )
    max_inflight_body_bytes: PositiveInt = Field(
        512 * MIB, description="Maximum bytes of all bodies being received or processed; beyond it the answer is 429"
    )
    max_images_per_request: PositiveInt = Field(
        64, description="Maximum number of images in one request; beyond it the answer is 422"
    )
    max_image_pixels: PositiveInt = Field(
        50_000_000,
        description="Maximum number of pixels of an image, according to its header; beyond it the answer is 413",
    )
    decoders: NonNegativeInt = Field(
        0, le=MAX_DECODERS, description="Number of processes that decode images; 0 is one more than the number of cores"
    )
    decode_timeout_seconds: Timeout = Field(
        10.0, description="Time limit for decoding an image; beyond it the answer is 422"
    )
    decoder_memory_bytes: PositiveInt = Field(
        1024 * MIB, description="Maximum memory for decoding one image; beyond it the answer is 422"
    )
    max_decode_images: PositiveInt = Field(
        512, description="Maximum number of images waiting to be decoded; beyond it the answer is 429"
    )
    max_decode_pixels: PositiveInt = Field(
        500_000_000,
        description="Maximum number of pixels of all waiting images above 4 megapixels, according to their headers; "
        "beyond it the answer is 429",
    )
    simd: bool = Field(
        default=True,
        description="Decode and resize with SIMD; up to 3 % of the values differ from Pillow's by 1 of 255",
    )
    jpeg_margin: NonNegativeFloat = Field(
        4.0,
        allow_inf_nan=False,
        description="Decode a JPEG at 1/2, 1/4 or 1/8 of its size if each side keeps at least this many times the "
        "pixels that the model needs; 0 always decodes at full size",
    )

    # The admin API.
    admin_token: SecretStr | None = Field(
        None, min_length=16, description="Token that gives access to the admin API; without one, there is no admin API"
    )
    max_upload_bytes: PositiveInt = Field(
        8 * 1024 * MIB, description="Maximum bytes of an uploaded version; beyond it the answer is 413"
    )
    min_free_disk_bytes: NonNegativeInt = Field(
        256 * MIB,
        description="Bytes that an upload must leave free on the repository's disk; otherwise the answer is 507",
    )

    # Stopping.
    drain_delay_seconds: Delay = Field(
        3.0, description="How long requests are still accepted after SIGTERM, while readiness answers 503"
    )
    grace_seconds: Timeout = Field(
        25.0, description="How long after SIGTERM the process is ended in any case, with exit code 1"
    )

    # The log.
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="Log format; auto is text on a terminal, otherwise JSON"
    )
    log_requests: Literal["all", "failed", "none"] = Field(
        "failed", description="Which requests are logged; failed logs those answered with an error"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum log level")

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
            raise ValueError(
                "drain_delay_seconds must be less than grace_seconds: waiting requests are answered in between"
            )
        if 0 < self.jpeg_margin < 1:
            raise ValueError(
                "jpeg_margin must be 0 or at least 1: an image cannot be reduced below what the model needs"
            )
        for bound in ("max_queue_images", "max_decode_images"):
            if getattr(self, bound) < self.max_images_per_request:
                raise ValueError(
                    f"{bound} must be at least max_images_per_request, or a full request could not be served"
                )
        known = {PREFIX + name.upper() for name in type(self).model_fields}
        given = (name for name in os.environ if name.startswith(PREFIX) and not _SERVICE_LINK.search(name))
        if unknown := sorted(name for name in given if name not in known):
            near = get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"there is no setting {unknown[0]}{hint}")
        return self
