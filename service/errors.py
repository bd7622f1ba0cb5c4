"""Every error that a client or an operator can get, with its HTTP status, code and cure."""

from collections.abc import Mapping

UNEXPECTED = "the server failed unexpectedly"
"""The message of an error that is a fault of the server itself."""


class ServiceError(Exception):
    """The server failed unexpectedly.

    This is the base class of every error. Each error has a stable `code`, an HTTP `status`, and a `cure`, which says
    what the caller can do. A client sees the message and the cure. `detail` (a path, a library's own message) is only
    for the log and the command line.
    """

    status = 500
    code = "internal_error"
    cure = "try again; if the error persists, report the X-Request-ID of this response to the operator"
    retry_after_seconds: int | None = None
    more_headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, cure: str | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure or self.cure
        self.detail = detail

    @property
    def headers(self) -> Mapping[str, str]:
        """The HTTP headers to send with the error."""
        retry = {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
        return {**self.more_headers, **retry}


# The request is wrong.


class BadRequest(ServiceError):
    """The request is malformed."""

    status = 400
    code = "bad_request"
    cure = "GET /docs describes the request that each route accepts"


class EmptyBody(ServiceError):
    """The request contains no image."""

    status = 400
    code = "empty_body"
    cure = "send the image as the body: curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' URL"


class ModelNotFound(ServiceError):
    """There is no model with this name, or no loaded version with this number or label."""

    status = 404
    code = "model_not_found"
    cure = "GET /models lists all models"


class RouteNotFound(ServiceError):
    """There is no route with this path."""

    status = 404
    code = "route_not_found"
    cure = "GET /docs lists every route"


class MethodNotAllowed(ServiceError):
    """The route does not support this HTTP method."""

    status = 405
    code = "method_not_allowed"
    cure = "GET /docs lists every route with its methods"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.more_headers = {"Allow": allow}


class HeadTimeout(ServiceError):
    """The request line and headers did not arrive in time."""

    status = 408
    code = "head_timeout"
    cure = "send the request line and headers at once"


class BodyTimeout(ServiceError):
    """The body did not arrive in time."""

    status = 408
    code = "body_timeout"
    cure = "send a smaller image, or send it faster"
    more_headers: Mapping[str, str] = {"Connection": "close"}  # do not wait for such a client again


class BodyTooLarge(ServiceError):
    """The body is larger than allowed."""

    status = 413
    code = "body_too_large"
    cure = "send a smaller image: models use only a few hundred pixels a side"


class ImageTooLarge(ServiceError):
    """The image is larger than allowed, according to its header."""

    status = 413
    code = "image_too_large"
    cure = "resize the image before sending it: models use only a few hundred pixels a side"

    def __init__(self, message: str, *, pixels: int = 0, cure: str | None = None) -> None:
        super().__init__(message, cure=cure)
        self.pixels = pixels
        """The number of pixels that the header claims; 0 if something else is too large."""


class UrlTooLong(ServiceError):
    """The URL is longer than allowed."""

    status = 414
    code = "url_too_long"
    cure = "send long data in the request body"


class HeadTooLarge(ServiceError):
    """The request line and headers, or the trailers after the body, are larger than allowed."""

    status = 431
    code = "head_too_large"
    cure = "send fewer or shorter headers"


class UnsupportedMediaType(ServiceError):
    """The route does not accept this Content-Type."""

    status = 415
    code = "unsupported_media_type"
    cure = "send the image with -H 'Content-Type: image/jpeg', as multipart with -F file=@photo.jpg, or JSON"


class UnsupportedImage(ServiceError):
    """The data is not an image in a supported format."""

    status = 415
    code = "unsupported_image"
    cure = "send a JPEG, PNG, WebP, BMP or GIF"


class UndecodableImage(ServiceError):
    """The data begins like an image but cannot be decoded."""

    status = 422
    code = "undecodable_image"
    cure = "check that the file opens in an image viewer and was sent completely"

    def __init__(self, message: str, *, cure: str | None = None, met_codec: bool = True) -> None:
        super().__init__(message, cure=cure)
        self.met_codec = met_codec
        """Whether native code refused the image."""


class DecoderDied(ServiceError):
    """The decoder process crashed on the image."""

    status = 422
    code = "decoder_died"
    cure = "open the image in an editor, save it again as JPEG or PNG, and send the new file"


class DecodingTooCostly(ServiceError):
    """Decoding the image took more time or memory than allowed."""

    status = 422
    code = "decoding_too_costly"
    cure = "resize the image before sending it, or save it as a baseline JPEG"


class UnsupportedAspectRatio(ServiceError):
    """The aspect ratio of the image exceeds 100:1."""

    status = 422
    code = "unsupported_aspect_ratio"
    cure = "crop the image: the longer side may be at most 100 times the shorter"


class InvalidInput(ServiceError):
    """A value in the request is not valid for the route or the model."""

    status = 422
    code = "invalid_input"
    cure = "GET /models/<model> describes the input that the model accepts"


# Errors of the admin API.


class Unauthorized(ServiceError):
    """The admin token is missing or wrong."""

    status = 401
    code = "unauthorized"
    cure = "send the header Authorization: Bearer TOKEN, where TOKEN is the value of MENAGERIE_ADMIN_TOKEN"
    more_headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class Conflict(ServiceError):
    """The request conflicts with the current state of the model or the version."""

    status = 409
    code = "conflict"
    cure = "GET /models/<model> lists its versions and shows which one is live"


class RepositoryReadOnly(ServiceError):
    """The server has no write access to the model repository."""

    status = 409
    code = "repository_read_only"
    cure = (
        "give the server's user write access, or change the repository's files yourself and set MENAGERIE_POLL_SECONDS"
    )


class UploadInvalid(ServiceError):
    """The upload does not match its checksum or does not contain a valid version."""

    status = 422
    code = "upload_invalid"
    cure = "send one weights file, or a tar of a version's directory with Content-Type: application/x-tar"


class LoadFailed(ServiceError):
    """The version could not be loaded. The live version has not changed."""

    status = 422
    code = "load_failed"
    cure = "GET /models/<model> shows the reason"


class GoldenDisagreement(ServiceError):
    """The version disagrees with the live version on more golden inputs than model.toml allows."""

    status = 409
    code = "golden_disagreement"
    cure = "check the differences; if the new labels are correct, lower min_agreement in model.toml"


class InsufficientStorage(ServiceError):
    """There is not enough disk space for the upload."""

    status = 507
    code = "insufficient_storage"
    cure = "delete versions that are no longer needed, or enlarge the repository's disk"


class NotEnoughMemory(ServiceError):
    """There is not enough memory to load the version beside the loaded ones."""

    status = 507
    code = "not_enough_memory"
    cure = "unload another version, give the server more memory, or set unload_first to unload the live version first"


# The server is busy or not ready.


class QueueFull(ServiceError):
    """More requests are waiting than the settings allow."""

    status = 429
    code = "queue_full"
    cure = "wait for the number of seconds in Retry-After and send again"
    retry_after_seconds = 1


class TooManyConnections(ServiceError):
    """The server has reached its maximum number of connections. Only GET /health/ is still answered."""

    status = 503
    code = "too_many_connections"
    cure = "wait for the number of seconds in Retry-After and send again; reuse connections instead of opening new ones"
    retry_after_seconds = 1


class ModelNotReady(ServiceError):
    """The model is still loading or could not be loaded."""

    status = 503
    code = "model_not_ready"
    cure = "GET /models/<model> shows its state and the reason"
    retry_after_seconds = 5


class ShuttingDown(ServiceError):
    """The server is shutting down."""

    status = 503
    code = "shutting_down"
    cure = "send the request to another replica, or again once the server is back"
    retry_after_seconds = 5


class DeadlinePassed(ServiceError):
    """The response was not ready in time."""

    status = 504
    code = "deadline_passed"
    cure = "send fewer requests at once, or raise MENAGERIE_REQUEST_TIMEOUT_SECONDS"


class InferenceFailed(ServiceError):
    """The engine failed on this item."""

    status = 500
    code = "inference_failed"
    cure = "the server's log shows the cause under the X-Request-ID of this response"


class DeviceLost(ServiceError):
    """The GPU failed in a way that requires a new process. The server exits so that a supervisor restarts it."""

    status = 503
    code = "device_lost"
    cure = "the server is restarting: send the request again"
    retry_after_seconds = 30


# Errors that an operator sees: at start-up, in the log, in GET /models/<model>.


class RepositoryError(ServiceError):
    """The model repository contains something that cannot be served."""

    code = "repository_error"
    cure = "menagerie check lists every problem in a model repository"


class ConversionError(ServiceError):
    """The artifact could not be converted to ONNX."""

    code = "conversion_failed"
    cure = "menagerie convert MODEL shows every step"


class EngineError(ServiceError):
    """ONNX Runtime could not open or run the model with the current settings."""

    code = "engine_error"
    cure = "the server's log shows ONNX Runtime's own message"
