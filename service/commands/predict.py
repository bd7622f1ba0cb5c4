"""menagerie predict: classifies one photograph, by a server or in this process."""

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from service import logs
from service.api.schemas import PredictAnswer
from service.commands import remote
from service.commands.console import CommandError, out, report_errors
from service.commands.listing import known
from service.commands.options import CacheOption, RepositoryOption, UrlOption, read_settings
from service.images.decode_pool import DecodePool
from service.lifecycle import Lifecycle
from service.repository.repository import Repository
from service.settings import Settings
from service.versions.loader import Loader
from service.versions.reconciler import Reconciler
from service.versions.registry import Registry
from service.versions.shadow import Mirror


def predict(
    photo: Annotated[Path, typer.Argument(help="An image file")],
    model: Annotated[str, typer.Option(help="Name of the model")],
    url: UrlOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show")] = 5,
    repository: RepositoryOption = None,
    cache: CacheOption = None,
) -> None:
    """Classify a photograph: by a running server with --url, else in this process."""
    with report_errors():
        try:
            content = photo.read_bytes()
        except OSError as error:
            raise CommandError(f"{photo} cannot be read: {error.strerror}", cure="name an image file") from error
        if url:
            answer = remote.post(f"{url.rstrip('/')}/predict/{model}", params={"top_k": top_k}, content=content)
        else:
            settings = read_settings(repository=repository, cache=cache)
            answer = asyncio.run(_predict_here(settings, model, content, top_k))
    for each in answer["predictions"]:
        out.print(f"{each['probability']:8.4f}  {escape(each['label'])}")


async def _predict_here(settings: Settings, model: str, content: bytes, top_k: int) -> dict[str, Any]:
    logs.configure(settings.model_copy(update={"log_level": "warning"}))
    known(Repository(settings.repository), [model])
    settings = settings.model_copy(update={"models": (model,), "decoders": 1})
    decoders = DecodePool.of(settings)
    registry = Registry(Mirror(settings.request_timeout_seconds))
    reconciler = Reconciler(settings, registry, Loader(settings, decoders, Lifecycle()))
    decoders.start()
    try:
        await reconciler.refresh()
        with registry.lease(model) as servable:
            outcome = await servable.predict([content], top_k, time.monotonic() + settings.request_timeout_seconds)
            answer: dict[str, Any] = json.loads(PredictAnswer.encoded(servable, outcome))
            return answer
    finally:
        await reconciler.close()
        await decoders.close()
