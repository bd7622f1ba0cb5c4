"""Image bytes -> uint8 pixels, as the artifact asks."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from models.inputs import ImageInput
from service.errors import QueueFull, ShuttingDown
from service.imagefile import UPRIGHT, open_image

# EXIF's orientations: what turns the stored picture upright, whether that swaps width and height, and whether the
# upright picture's left is the stored picture's right (or bottom).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {5, 6, 7, 8}
MIRRORED = {2, 3, 6, 7}


def decode(data: bytes | memoryview, spec: ImageInput, *, max_pixels: int) -> np.ndarray:
    """Gives read-only, C-contiguous uint8 pixels [spec.height, spec.width, spec.channels], RGB or luma.

    The picture is decoded as a viewer shows it: the first frame, turned as EXIF says, on white where it is transparent.
    It is fitted as Pillow's resize ("stretch") or torchvision's Resize and CenterCrop ("crop") do it; a crop is at most
    1 of 255 off, or 2 in one value of ten million. Any number of threads may call this.

    Raises what `open_image` raises.
    """
    image, orientation = open_image(bytes(data), max_pixels)
    mode = "L" if spec.channels == 1 else "RGB"
    if mode == "L":
        image = image.convert(mode)
    image = _fitted(image, orientation, spec)
    if image.mode != mode:
        image = image.convert(mode)  # gray, which is resized as one channel
    return np.asarray(image).reshape(spec.shape)


# A picture -> the artifact's size.


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _fitted(image: Image.Image, orientation: int, spec: ImageInput) -> Image.Image:
    """Upright, and of the artifact's size. Of a picture that is cropped, only the pixels that stay are computed."""
    resampling = Image.Resampling[spec.interpolation.upper()]
    if spec.resize == "stretch":
        return _upright(image, orientation).resize((spec.width, spec.height), resampling)
    # torchvision's arithmetic: Resize(shorter_side), then CenterCrop.
    width, height = image.size[::-1] if orientation in SIDEWAYS else image.size
    short, long = spec.shorter_side, int(spec.shorter_side * max(width, height) / min(width, height))
    new_width, new_height = (short, long) if width <= height else (long, short)
    left, top = round((new_width - spec.width) / 2), round((new_height - spec.height) / 2)
    right, bottom = left + spec.width, top + spec.height
    if (new_width, new_height) == (width, height):
        return _upright(image, orientation).crop((left, top, right, bottom))
    if resampling == Image.Resampling.NEAREST:  # cheap in full; from a part, rounding would choose other pixels
        return _upright(image, orientation).resize((new_width, new_height), resampling).crop((left, top, right, bottom))

    x0, x1 = left * width / new_width, right * width / new_width
    y0, y1 = top * height / new_height, bottom * height / new_height
    if resampling == Image.Resampling.BILINEAR and orientation == UPRIGHT:
        return image.resize((spec.width, spec.height), resampling, (x0, y0, x1, y1))
    # Filters that overshoot are clipped between the two passes, so their order shows: up to 58 of 255 at hard edges.
    # Horizontal first is what Pillow did up to 12, and what 13 does with most whole pictures, but not with parts of
    # them. The picture is turned in between, where it is small.
    if orientation in MIRRORED:
        x0, x1 = width - x1, width - x0
    if orientation in SIDEWAYS:
        strip = image.resize((image.width, spec.width), resampling, (0, x0, image.width, x1))
    else:
        strip = image.resize((spec.width, image.height), resampling, (x0, 0, x1, image.height))
    return _upright(strip, orientation).resize((spec.width, spec.height), resampling, (0, y0, spec.width, y1))


class DecodePool:
    """Threads that decode, and a bound on what waits for them."""

    def __init__(self, threads: int, max_images: int, max_pixels: int) -> None:
        self.threads = threads
        self.max_images = max_images
        self.max_pixels = max_pixels
        self._room = threading.BoundedSemaphore(max_images)
        self._executor: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Starts to take images."""
        self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")

    def close(self) -> None:
        """Takes no more images, and waits for those taken: each of their callers is answered."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    async def decode(self, data: bytes | memoryview, spec: ImageInput) -> np.ndarray:
        """`decode` in one of the threads, for callers on one event loop. A cancelled caller's image is skipped.

        Raises what `decode` raises, QueueFull at once when `max_images` are waiting or running, or ShuttingDown.
        """
        if self._executor is None:
            raise ShuttingDown("images are no longer decoded")
        if not self._room.acquire(blocking=False):
            raise QueueFull(f"{self.max_images} images are waiting to be decoded")
        future = self._executor.submit(decode, data, spec, max_pixels=self.max_pixels)
        future.add_done_callback(self._leave)  # not when the caller leaves: a cancelled caller's thread may still run
        return await asyncio.wrap_future(future)

    def _leave(self, _: Future[np.ndarray]) -> None:
        self._room.release()
