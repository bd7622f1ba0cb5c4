"""Every error that a client can meet: its HTTP status, its code, and its cure."""

from collections.abc import Mapping


class ServiceError(Exception):
    """The server made a mistake.

    Every other error is a kind of it, with a stable `code`, the HTTP `status` that goes with it, and what the caller
    can do about it. A client sees message and cure; `detail` (a path, a library's last words) is for the log and for
    whoever runs the command.
    """

    status = 500
    code = "internal_error"
    cure = "try again; if it persists, tell the operator the X-Request-ID of this answer"
    retry_after_seconds: int | None = None
    more_headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, cure: str | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure or self.cure
        self.detail = detail

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers that go with the error."""
        retry = {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
        return {**self.more_headers, **retry}


# The request is wrong.


class BadRequest(ServiceError):
    """The request cannot be understood."""

    status = 400
    code = "bad_request"
    cure = "GET /docs shows what each route takes"


class EmptyBody(ServiceError):
    """There is no image."""

    status = 400
    code = "empty_body"
    cure = "send the image as the body: curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' URL"


class ModelNotFound(ServiceError):
    """No model, or no loaded version, has that name."""

    status = 404
    code = "model_not_found"
    cure = "GET /models lists all"


class RouteNotFound(ServiceError):
    """No route has that path."""

    status = 404
    code = "route_not_found"
    cure = "GET /docs shows every route"


class MethodNotAllowed(ServiceError):
    """The route exists, with another method."""

    status = 405
    code = "method_not_allowed"
    cure = "GET /docs shows every route with its method"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.more_headers = {"Allow": allow}


class HeadTimeout(ServiceError):
    """The request line and headers came too slowly."""

    status = 408
    code = "head_timeout"
    cure = "send the request line and headers at once"


class BodyTimeout(ServiceError):
    """The body came too slowly."""

    status = 408
    code = "body_timeout"
    cure = "send a smaller image, or send it faster"
    more_headers: Mapping[str, str] = {"Connection": "close"}  # whoever sends so slowly is not waited for again


class BodyTooLarge(ServiceError):
    """The body has too many bytes."""

    status = 413
    code = "body_too_large"
    cure = "send a smaller image: models see a few hundred pixels"


class ImageTooLarge(ServiceError):
    """The image has too many pixels, by its header."""

    status = 413
    code = "image_too_large"
    cure = "resize the image before sending it: models see a few hundred pixels"

    def __init__(self, message: str, *, pixels: int = 0, cure: str | None = None) -> None:
        super().__init__(message, cure=cure)
        self.pixels = pixels
        """As many as its header claims; 0 where it is too large in another way."""


class UrlTooLong(ServiceError):
    """The URL has too many bytes."""

    status = 414
    code = "url_too_long"
    cure = "send what is long as the request's body"


class HeadTooLarge(ServiceError):
    """The request line and headers, or the trailers behind a body, have too many bytes or lines."""

    status = 431
    code = "head_too_large"
    cure = "send fewer and shorter headers"


class UnsupportedMediaType(ServiceError):
    """The Content-Type is none that the route takes."""

    status = 415
    code = "unsupported_media_type"
    cure = "send the image with -H 'Content-Type: image/jpeg', as multipart with -F file=@photo.jpg, or JSON"


class UnsupportedImage(ServiceError):
    """The bytes are not an image of a supported format."""

    status = 415
    code = "unsupported_image"
    cure = "send a JPEG, PNG, WebP, BMP or GIF"


class UndecodableImage(ServiceError):
    """The bytes begin like an image, and are broken."""

    status = 422
    code = "undecodable_image"
    cure = "check that the file opens in a viewer and was sent whole"

    def __init__(self, message: str, *, cure: str | None = None, met_codec: bool = True) -> None:
        super().__init__(message, cure=cure)
        self.met_codec = met_codec
        """Whether it was native code that refused the image."""


class DecoderDied(ServiceError):
    """The image ended the process that decoded it."""

    status = 422
    code = "decoder_died"
    cure = "open the image in an editor, save it again as JPEG or PNG, and send that"


class DecodingTooCostly(ServiceError):
    """Decoding the image took more time or memory than it may."""

    status = 422
    code = "decoding_too_costly"
    cure = "resize the image before sending it, or save it as a baseline JPEG"


class UnsupportedAspectRatio(ServiceError):
    """The image is a strip."""

    status = 422
    code = "unsupported_aspect_ratio"
    cure = "crop the image: the longer side may be at most 100 times the shorter"


class InvalidInput(ServiceError):
    """A value of the request is not what the model or the route takes."""

    status = 422
    code = "invalid_input"
    cure = "GET /models/<model> shows the input that the model takes"


# The operator's request is wrong, or cannot be followed: the admin API answers with these.


class Unauthorized(ServiceError):
    """The admin API was asked without its token."""

    status = 401
    code = "unauthorized"
    cure = "send the header Authorization: Bearer TOKEN with the token of MENAGERIE_ADMIN_TOKEN"
    more_headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class Conflict(ServiceError):
    """What is asked does not go with what is there."""

    status = 409
    code = "conflict"
    cure = "GET /models/<model> shows its versions and who is live"


class RepositoryReadOnly(ServiceError):
    """The server may not write to the model repository."""

    status = 409
    code = "repository_read_only"
    cure = "mount the repository writable for the server's user, or change it there and let the server poll"


class UploadInvalid(ServiceError):
    """An uploaded artifact is not what was announced, or not what a version is made of."""

    status = 422
    code = "upload_invalid"
    cure = "send one weights file, or a tar of a version's directory with Content-Type: application/x-tar"


class LoadFailed(ServiceError):
    """The version could not be loaded; who was live still is."""

    status = 422
    code = "load_failed"
    cure = "GET /models/<model> shows the reason"


class GoldenDisagreement(ServiceError):
    """The version's labels differ more from the live one's than model.toml allows."""

    status = 409
    code = "golden_disagreement"
    cure = "look at the differences; if the new labels are right, lower min_agreement in model.toml"


class InsufficientStorage(ServiceError):
    """The disk has no room for the upload."""

    status = 507
    code = "insufficient_storage"
    cure = "delete versions that are not needed, or give the repository's disk more room"


class NotEnoughMemory(ServiceError):
    """Memory does not hold the version beside what is loaded."""

    status = 507
    code = "not_enough_memory"
    cure = "unload something, give the server more memory, or set unload_first: the live version goes first"


# The server is busy, or is not ready.


class QueueFull(ServiceError):
    """More is waiting than the settings allow."""

    status = 429
    code = "queue_full"
    cure = "wait for Retry-After seconds and send again"
    retry_after_seconds = 1


class TooManyConnections(ServiceError):
    """The server has as many connections as it may; only GET /health/ is still answered."""

    status = 503
    code = "too_many_connections"
    cure = "wait for Retry-After seconds and send again, and keep connections open rather than opening new ones"
    retry_after_seconds = 1


class ModelNotReady(ServiceError):
    """The model is loading, or could not be loaded."""

    status = 503
    code = "model_not_ready"
    cure = "GET /models/<model> shows its state and the reason"
    retry_after_seconds = 5


class ShuttingDown(ServiceError):
    """The server is stopping."""

    status = 503
    code = "shutting_down"
    cure = "send to another replica, or again once the server is back"
    retry_after_seconds = 5


class DeadlinePassed(ServiceError):
    """The answer was not ready in time."""

    status = 504
    code = "deadline_passed"
    cure = "send fewer requests at once, or raise MENAGERIE_REQUEST_TIMEOUT_SECONDS"


class InferenceFailed(ServiceError):
    """The engine failed on this item."""

    status = 500
    code = "inference_failed"
    cure = "the server's log has the cause, under the X-Request-ID of this answer"


class DeviceLost(ServiceError):
    """The GPU failed in a way that only a new process repairs; the server ends, to be started again."""

    status = 503
    code = "device_lost"
    cure = "the server is being started again: send again"
    retry_after_seconds = 30


# The operator meets these: at start, in a log, in GET /models/<model>.


class RepositoryError(ServiceError):
    """The model repository holds something that cannot be served."""

    code = "repository_error"
    cure = "menagerie check names every problem of a model repository"


class ConversionError(ServiceError):
    """An artifact could not become ONNX."""

    code = "conversion_failed"
    cure = "menagerie convert MODEL shows every step"


class EngineError(ServiceError):
    """ONNX Runtime could not open or run a model as the settings ask."""

    code = "engine_error"
    cure = "the server's log has ONNX Runtime's own words"
