"""menagerie bench: runs the benchmark and shows its report."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from service.bench import benchmark
from service.bench.report import Report, draw
from service.commands import remote
from service.commands.console import CommandError, err, out, report_errors
from service.commands.listing import known
from service.commands.options import CacheOption, RepositoryOption, UrlOption, read_settings
from service.repository.repository import Repository
from service.settings import Settings


def bench(
    model: Annotated[
        str | None, typer.Argument(help="Name of the model; by default the first of the repository")
    ] = None,
    repository: RepositoryOption = None,
    cache: CacheOption = None,
    url: UrlOption = None,
    clients: Annotated[str, typer.Option(help="Numbers of clients, separated by commas")] = "1,8,32",
    seconds: Annotated[float, typer.Option(min=1, help="How long to measure each number of clients")] = 10.0,
    image: Annotated[Path, typer.Option(help="Image that the clients send")] = benchmark.PHOTOGRAPH,
    photographs: Annotated[
        Path | None, typer.Option(help="Directory of JPEGs to measure the accuracy of preprocessing on, too")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory for report.json, report.md and report.png; created if missing")
    ] = None,
    *,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Measure the server itself, with a model that costs almost nothing")
    ] = False,
) -> None:
    """Measure a model under load, and each part of the server alone. Needs wrk (apt-get install wrk)."""
    settings = read_settings(repository=benchmark.TINY if tiny else repository, cache=cache)
    counts = _numbers(clients)
    with report_errors():
        name = "tiny" if tiny else model or _first_model(settings, url)
        if url is None:
            known(Repository(settings.repository), [name])
        wanted = benchmark.Benchmark(
            model=name, url=url, image=image, clients=counts, seconds=seconds, photographs=photographs
        )
        try:
            report = benchmark.run(settings, wanted, say=lambda words: err.print(f"[dim]{escape(words)}[/dim]"))
        except KeyboardInterrupt:
            raise CommandError(
                "interrupted: nothing was written", cure="a smaller --seconds makes it shorter"
            ) from None
    _show(report)
    if output is not None:
        _save(report, output)


def _first_model(settings: Settings, url: str | None) -> str:
    """The first model of the server, or else of the repository. Raises CommandError if there is none."""
    names = (
        [each["name"] for each in remote.get(f"{url.rstrip('/')}/models")["models"]]
        if url
        else Repository(settings.repository).names()
    )
    if not names:
        raise CommandError("there is no model to measure", cure="name another --repository or --url, or use --tiny")
    return names[0]


def _numbers(text: str) -> list[int]:
    """The numbers of --clients. Raises BadParameter."""
    numbers = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if not numbers or min(numbers) < 1 or len(numbers) != len(text.split(",")):
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,8,32", param_hint="--clients")
    return numbers


def _show(report: Report) -> None:
    out.print()
    for title, (head, *rows) in report.tables():
        table = Table(*map(escape, head), title=escape(title), title_justify="left", box=None, pad_edge=False)
        for each in table.columns:
            each.justify = "right"
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table, "")


def _save(report: Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(report.to_json(), indent=1))
    (directory / "report.md").write_text(report.to_markdown())
    out.print(f"written {directory}/report.json, report.md")
    try:
        draw(report, directory / "report.png")
        out.print(f"written {directory}/report.png")
    except ImportError:
        out.print("no chart: it needs matplotlib, pip install 'menagerie[bench]'", markup=False)
