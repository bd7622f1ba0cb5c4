"""The command line: serve, convert, pull, train, models, predict, bench, check."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models import catalog as architectures
from models.artifact import CONFIG_FILE, MANIFEST_FILE, MODEL_NAME, OVERRIDE_FILE, Artifact, ArtifactError
from service import logs
from service.bench.benchmark import PHOTOGRAPH, TINY
from service.bench.benchmark import Plan as BenchPlan
from service.bench.benchmark import run as run_bench
from service.bench.report import Report, draw
from service.child import CHILD_ENVIRONMENT
from service.conversion import Converter
from service.errors import ModelNotFound, RepositoryError, ServiceError
from service.lifecycle import Lifecycle
from service.loader import Loader
from service.preprocess import DecodePool, Shortcuts
from service.reconciler import Reconciler
from service.registry import Registry
from service.repository import Repository, Version, read_published
from service.schemas import PredictAnswer
from service.server import Server
from service.settings import PREFIX, Settings
from service.shadow import Mirror

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serves Keras and PyTorch image classifiers. Every setting is an environment variable, MENAGERIE_*.",
)
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

RepositoryOption = Annotated[Path | None, typer.Option(help="Directory of the models [MENAGERIE_REPOSITORY]")]
CacheOption = Annotated[Path | None, typer.Option(help="Directory for converted models [MENAGERIE_CACHE]")]
UrlOption = Annotated[str | None, typer.Option(help="Ask this server, such as http://127.0.0.1:8000")]
ModelsArgument = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: all")]

HTTP_TIMEOUT_SECONDS = 60.0


@app.command()
def serve(
    repository: RepositoryOption = None,
    cache: CacheOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [MENAGERIE_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [MENAGERIE_PORT]")] = None,
) -> None:
    """Load the model repository and answer requests, until SIGTERM."""
    settings = _settings(repository=repository, cache=cache, host=host, port=port)
    logs.configure(settings)
    raise typer.Exit(Server(settings).serve_until_stopped())


@app.command()
def convert(
    models: ModelsArgument = None,
    repository: RepositoryOption = None,
    cache: CacheOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Also make a repository here that serves without a framework")
    ] = None,
) -> None:
    """Convert what has not been converted yet."""
    settings = _settings(repository=repository, cache=cache)
    logs.configure(settings)
    converter = Converter.of(settings)
    found = Repository(settings.repository)
    failed = 0
    with _said():
        chosen = [each for each in _versions(found) if not models or each[0] in _known(found, models)]
    for position, (name, number, version) in enumerate(chosen, 1):
        title = f"{name} version {number} ({position} of {len(chosen)})" if number else name
        try:
            if isinstance(version, ServiceError):
                raise version
            directory = _converted(version, converter, title)
            if output is not None:
                _publish(found, version, directory, output)
        except ServiceError as error:
            failed += 1
            _complain(error, title)
    raise typer.Exit(1 if failed else 0)


def _converted(version: Version, converter: Converter, title: str) -> Path:
    """The published directory of a version; each step is told as it begins."""
    if not isinstance(version.source, Artifact):
        out.print(f"{title}: published already")
        return version.source
    if found := converter.published(version.source):
        out.print(f"{title}: converted already")
        return found
    started = time.monotonic()

    def on_step(step: str) -> None:
        out.print(f"{title}: {time.monotonic() - started:5.1f} s  {step}")

    directory = asyncio.run(converter.convert(version.source, on_step))
    out.print(f"{title}: {time.monotonic() - started:5.1f} s  done")
    return directory


def _publish(repository: Repository, version: Version, directory: Path, output: Path) -> None:
    """Copies a published version into another repository, beside its settings; complete or not at all."""
    source, model = repository.root / version.model, output / version.model
    target, staging = model / str(version.number), model / f".{version.number}.staging"
    if target.exists() and not (target / MANIFEST_FILE).exists():
        raise RepositoryError(f"{target} holds something else", cure="name an empty directory as --output")
    if target.resolve() == directory.resolve():
        raise RepositoryError(f"{output} is the repository itself", cure="name another directory as --output")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(directory, staging)
    if (source / CONFIG_FILE).exists():
        shutil.copyfile(source / CONFIG_FILE, model / CONFIG_FILE)
    if (override := source / str(version.number) / OVERRIDE_FILE).exists():
        shutil.copyfile(override, staging / OVERRIDE_FILE)
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    out.print(f"published {target}")


@app.command()
def pull(
    architecture: Annotated[str, typer.Argument(help="Such as torchvision:resnet50 or keras:ResNet50")],
    output: Annotated[Path, typer.Option(help="Directory of models to put it into")],
    name: Annotated[str | None, typer.Option(help="Name of the model [that of the architecture]")] = None,
    weights: Annotated[str | None, typer.Option(help="One of several official weights [the recommended]")] = None,
) -> None:
    """Fetch official weights of torchvision or keras.applications: a model, or its next version."""
    with _said():
        try:
            found = architectures.find(architecture).name
        except ArtifactError as error:
            raise RepositoryError(str(error), cure=error.cure) from error
        model = name or found.rpartition(":")[-1].lower()
        if not MODEL_NAME.fullmatch(model):
            cure = "lower-case letters, digits, '.', '_' and '-', at most 64"
            raise RepositoryError(f"{model!r} is no name for a model", cure=cure)
        job = {"architecture": found, "weights": weights, "output": str(output.absolute()), "name": model}
        child = subprocess.run(
            [sys.executable, "-P", "-m", "models.pull"],
            check=False,
            input=json.dumps(job),
            stdout=subprocess.PIPE,  # how far it has come is shown: standard error is ours
            text=True,
            env={**os.environ, **CHILD_ENVIRONMENT},
        )
        outcome = json.loads(child.stdout or "{}")
        if "pulled" not in outcome:
            reason = outcome.get("reason", f"the pulling process ended with code {child.returncode}")
            raise RepositoryError(reason, cure=outcome.get("cure", "try again; what it said last is above"))
    out.print(f"pulled {outcome['pulled']}: {outcome['weights']}\nserve it with: menagerie serve --repository {output}")


@app.command()
def models(
    repository: RepositoryOption = None,
    cache: CacheOption = None,
    url: UrlOption = None,
    *,
    catalog: Annotated[bool, typer.Option("--catalog", help="List the architectures instead")] = False,
) -> None:
    """List the models with their states: of the repository, or of a running server with --url."""
    if catalog:
        _list_architectures()
        return
    table = Table(
        "model", "version", "state", "architecture", "framework", "provider", "reason", box=None, pad_edge=False
    )
    with _said():
        rows = _server_rows(url.rstrip("/")) if url else _repository_rows(_settings(repository=repository, cache=cache))
        for row in rows:
            table.add_row(*map(escape, row))
    out.print(table)


def _list_architectures() -> None:
    table = Table("architecture", "paper", "input", "parameters", "frameworks", box=None, pad_edge=False)
    table.columns[1].overflow = "fold"  # a narrow terminal loses nothing
    table.columns[3].justify = "right"
    for row in architectures.rows():
        table.add_row(*map(escape, row))
    out.print(table)
    out.print("torchvision:NAME and keras:NAME are the networks of torchvision.models and keras.applications")


def _server_rows(url: str) -> Iterator[tuple[str, ...]]:
    for model in _get(f"{url}/models")["models"]:
        if model["problem"]:
            yield model["name"], "", "UNAVAILABLE", "", "", "", model["problem"]
        for each in model["versions"]:
            known = [each[key] or "" for key in ("state", "architecture", "framework", "provider", "reason")]
            yield model["name"], str(each["version"]), *known


def _repository_rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    converter = Converter.of(settings)
    for name, number, found in _versions(Repository(settings.repository)):
        label = str(number or "")
        if isinstance(found, ServiceError):
            yield name, label, "UNAVAILABLE", "", "", "", f"{found.message}; {found.cure}"
        elif isinstance(found.source, Artifact):
            spec, state = found.source.spec, "CONVERTED" if converter.published(found.source) else "TO CONVERT"
            yield name, label, state, spec.architecture, spec.framework, "", ""
        else:
            yield name, label, "PUBLISHED", "", "", "", ""


def _versions(repository: Repository) -> Iterator[tuple[str, int | None, Version | ServiceError]]:
    """Every version that would be loaded, or why it could not be."""
    for name in repository.ignored():
        cure = "rename the directory: lower-case letters, digits, '.', '_' and '-', at most 64"
        yield name, None, RepositoryError(f"{name!r} is no name for a model, and is not served", cure=cure)
    for name in repository.names():
        try:
            numbers: list[int] = repository.wanted(name)
        except ServiceError as error:
            yield name, None, error
            continue
        for number in numbers:
            try:
                yield name, number, repository.resolve(name, number)
            except ServiceError as error:
                yield name, number, error


@app.command()
def predict(
    photo: Annotated[Path, typer.Argument(help="An image file")],
    model: Annotated[str, typer.Option(help="Name of the model")],
    url: UrlOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show")] = 5,
    repository: RepositoryOption = None,
    cache: CacheOption = None,
) -> None:
    """Say what is on a photograph: by a server with --url, else in this process."""
    with _said():
        try:
            content = photo.read_bytes()
        except OSError as error:
            raise RepositoryError(f"{photo} cannot be read: {error.strerror}", cure="name an image file") from error
        if url:
            answer = _post(f"{url.rstrip('/')}/predict/{model}", params={"top_k": top_k}, content=content)
        else:
            answer = asyncio.run(_predict_here(_settings(repository=repository, cache=cache), model, content, top_k))
    for each in answer["predictions"]:
        out.print(f"{each['probability']:8.4f}  {escape(each['label'])}")


async def _predict_here(settings: Settings, model: str, content: bytes, top_k: int) -> dict[str, Any]:
    logs.configure(settings.model_copy(update={"log_level": "warning"}))
    _known(Repository(settings.repository), [model])
    decoders = DecodePool(1, settings.max_decode_images, settings.max_image_pixels, Shortcuts.of(settings))
    settings = settings.model_copy(update={"models": (model,)})
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
        decoders.close()


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(help="Name of the model [the first of the repository]")] = None,
    repository: RepositoryOption = None,
    cache: CacheOption = None,
    url: UrlOption = None,
    clients: Annotated[str, typer.Option(help="Numbers of clients, separated by commas")] = "1,8,32",
    seconds: Annotated[float, typer.Option(min=1, help="How long to measure each number of clients")] = 10.0,
    image: Annotated[Path, typer.Option(help="What the clients send")] = PHOTOGRAPH,
    output: Annotated[
        Path | None, typer.Option(help="Directory for report.json, report.md and report.png; made where it lacks")
    ] = None,
    *,
    tiny: Annotated[bool, typer.Option("--tiny", help="A model that costs nothing: the server itself")] = False,
) -> None:
    """Measure a model under load, and what each part of the server reaches alone."""
    settings = _settings(repository=TINY if tiny else repository, cache=cache)
    with _said():
        name = "tiny" if tiny else model or _first_model(settings, url)
        if url is None:
            _known(Repository(settings.repository), [name])
        counts = _numbers(clients)
        wanted = BenchPlan(model=name, url=url, image=image, clients=counts, seconds=seconds)
        try:
            report = run_bench(settings, wanted, say=lambda words: err.print(f"[dim]{escape(words)}[/dim]"))
        except KeyboardInterrupt:
            raise RepositoryError("interrupted: nothing was written", cure="--seconds makes it shorter") from None
    out.print()
    for title, (head, *rows) in report.tables():
        table = Table(*map(escape, head), title=escape(title), title_justify="left", box=None, pad_edge=False)
        for each in table.columns:
            each.justify = "right"
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table, "")
    if output is not None:
        _save(report, output)


def _first_model(settings: Settings, url: str | None) -> str:
    """Of the server, or else of the repository. Raises RepositoryError where there is none."""
    names = (
        [each["name"] for each in _get(f"{url.rstrip('/')}/models")["models"]]
        if url
        else Repository(settings.repository).names()
    )
    if not names:
        raise RepositoryError("there is no model to measure", cure="name another --repository or --url, or use --tiny")
    return names[0]


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if not numbers or min(numbers) < 1 or len(numbers) != len(text.split(",")):
        raise RepositoryError(f"--clients {text!r} is no list of numbers", cure="such as --clients 1,8,32")
    return numbers


def _save(report: Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(report.to_json(), indent=1))
    (directory / "report.md").write_text(report.to_markdown())
    out.print(f"written {directory}/report.json, report.md")
    try:
        draw(report, directory / "report.png")
        out.print(f"written {directory}/report.png")
    except ImportError:
        out.print("no chart: it takes matplotlib, pip install 'menagerie[bench]'", markup=False)


@app.command()
def check(repository: RepositoryOption = None) -> None:
    """Validate a model repository and say what is wrong with it."""
    settings = _settings(repository=repository)
    problems = count = 0
    with _said():
        for name, number, found in _versions(Repository(settings.repository)):
            count += 1
            title = name if number is None else f"{name} version {number}"
            try:
                if isinstance(found, ServiceError):
                    raise found
                if isinstance(found.source, Path):
                    read_published(found.source)
                out.print(f"{title}: sound")
            except ServiceError as error:
                problems += 1
                _complain(error, title)
        if not count:
            raise RepositoryError("the repository is empty", cure="make a directory for a model in it")
    raise typer.Exit(1 if problems else 0)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train an architecture on images, and publish it into a model repository."""
    # The trainer becomes this process: signals reach it, its exit status is this one's, and no framework comes in here.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "models.train", *context.args])  # noqa: S606


def _settings(**overrides: object) -> Settings:
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        for problem in error.errors():
            name = "".join(f"{PREFIX}{str(part).upper()}: " for part in problem["loc"][:1])
            err.print(f"{name}{escape(problem['msg'])}")
        raise typer.Exit(2) from None


def _known(repository: Repository, names: list[str]) -> list[str]:
    """The names, all of which the repository has. Raises ModelNotFound."""
    known = repository.names()
    for name in names:
        if name not in known:
            raise ModelNotFound(f"there is no model {name}", cure=f"the repository has {', '.join(known)}")
    return names


def _get(url: str) -> Any:
    return _answer(lambda: httpx2.get(url, timeout=HTTP_TIMEOUT_SECONDS), url)


def _post(url: str, *, params: dict[str, int], content: bytes) -> Any:
    headers = {"Content-Type": "application/octet-stream"}
    return _answer(
        lambda: httpx2.post(url, params=params, content=content, headers=headers, timeout=HTTP_TIMEOUT_SECONDS), url
    )


def _answer(send: Any, url: str) -> Any:
    """The JSON of an answer; an error of the server is raised as it was told."""
    try:
        answer = send()
        body = answer.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise RepositoryError(
            f"no Menagerie answers at {url}: {error}", cure="start one with: menagerie serve"
        ) from error
    if answer.is_error and isinstance(body, dict) and "error" in body:
        raise ServiceError(body["error"]["message"], cure=body["error"]["cure"])
    return body


@contextmanager
def _said() -> Iterator[None]:
    """An expected error becomes two lines and exit code 1, not a traceback."""
    try:
        yield
    except ServiceError as error:
        _complain(error)
        raise typer.Exit(1) from None


def _complain(error: ServiceError, title: str = "") -> None:
    err.print(f"[red]{escape(f'{title}: ' if title else '')}{escape(error.message)}[/red]\n  {escape(error.cure)}")
    if error.detail:
        err.print(f"  {escape(error.detail)}")


def main() -> None:
    """Entry point of `menagerie`."""
    app()


if __name__ == "__main__":
    main()
