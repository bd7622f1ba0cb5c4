"""The result of a benchmark, as JSON, as Markdown and as a chart."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from service.bench.agreement import Agreement
from service.bench.limits import Limit
from service.bench.load import Load

NONE = "-"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures for one number of clients."""

    load: Load
    mean_batch: float
    server_cpu_milliseconds: float | None
    """For each request; None if the server's process cannot be seen from here."""
    memory_mib: float | None
    stages: Mapping[str, float]
    """Mean milliseconds of a request in each stage, by the server's own metrics, time of waiting included."""

    @property
    def client_cpu_milliseconds(self) -> float:
        """For each request."""
        return self.load.client_cpu_seconds / self.load.requests * 1000


@dataclass(frozen=True, kw_only=True)
class Report:
    """The figures of one benchmark."""

    model: str
    machine: Mapping[str, str]
    results: Sequence[Result]
    limits: Sequence[Limit] = ()
    large: Sequence[Limit] = ()
    """For a photograph of 12 megapixels: Pillow, then preprocessing."""
    agreement: Mapping[str, Agreement] = field(default_factory=dict)
    """Accuracy of each shortcut in preprocessing."""
    cores: int
    on_gpu: bool

    def least_cpu(self) -> Mapping[str, float]:
        """The least CPU time that each part takes for an image, in milliseconds."""
        parts = dict.fromkeys(limit.part for limit in self.limits if limit.part != "Pillow")
        return {part: min(each.cpu_milliseconds for each in self.limits if each.part == part) for part in parts}

    def limit(self, result: Result) -> float | None:
        """The requests per second that this machine could answer if it ran nothing but these parts and the clients.

        Each client waits for its answer. A few clients are therefore limited by the time that one image takes to pass
        through all the parts, one after the other.
        """
        least = self.least_cpu()
        if not least:
            return None
        engine = [each.rate for each in self.limits if each.part == "engine"]
        on_cores = sum(cpu for part, cpu in least.items() if not (self.on_gpu and part == "engine"))
        rate = self.cores * 1000 / (on_cores + result.client_cpu_milliseconds)
        if self.on_gpu:  # the GPU works at the same time as the cores
            rate = min(rate, max(engine))
        first = {  # of each part: one thread, a batch of one
            each.part: 1000 / each.rate for each in reversed(self.limits) if each.part in ("preprocessing", "engine")
        }
        alone = sum(first.values()) + least["HTTP"] + result.client_cpu_milliseconds
        return min(rate, result.load.clients * 1000 / alone)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        limits = [self.limit(result) for result in self.results]
        return asdict(self) | {"least_cpu_milliseconds": self.least_cpu(), "limit_of_each_result": limits}

    def tables(self) -> Sequence[tuple[str, Sequence[Sequence[str]]]]:
        """Tables, each with its title; the first row holds the column names."""
        tables = [("Under load", [_HEAD, *(self._row(result) for result in self.results)])]
        if self.limits:
            tables.append(("Each part alone", [_LIMIT_HEAD, *map(_limit_row, self.limits)]))
        if any(result.server_cpu_milliseconds for result in self.results) and self.limits:
            tables.append(("CPU time of the server, ms per request", list(self._shares())))
        if any(result.stages for result in self.results):
            tables.append(("Time of a request in each stage, ms", list(self._stages())))
        if self.large:
            ratio = self.large[1].cpu_milliseconds / self.large[0].cpu_milliseconds
            title = f"A photograph of 12 megapixels: {ratio:.2f} of Pillow's CPU"
            tables.append((title, [_LIMIT_HEAD, *map(_limit_row, self.large)]))
        if self.agreement:
            tables.append(
                ("Shortcuts in preprocessing, compared with Pillow and torchvision", list(self._agreements()))
            )
        return tables

    def _row(self, result: Result) -> Sequence[str]:
        load, limit = result.load, self.limit(result)
        return (
            str(load.clients),
            f"{load.rate:.1f}",
            *(f"{seconds * 1000:.2f}" for seconds in (load.p50, load.p95, load.p99)),
            str(load.refused + load.broken),
            f"{result.mean_batch:.2f}",
            NONE if result.server_cpu_milliseconds is None else f"{result.server_cpu_milliseconds:.2f}",
            f"{result.client_cpu_milliseconds:.2f}",
            NONE if result.memory_mib is None else f"{result.memory_mib:.0f}",
            NONE if limit is None else f"{load.rate / limit:.0%}",
        )

    def _shares(self) -> Sequence[Sequence[str]]:
        least = self.least_cpu()
        rows = [("clients", *least, "all else", "together", "over preprocessing")]
        for result in self.results:
            if (total := result.server_cpu_milliseconds) is not None:
                rest = total - sum(least.values())
                over = f"{total / least['preprocessing']:.2f}" if "preprocessing" in least else NONE
                cells = (*least.values(), rest, total)
                rows.append((str(result.load.clients), *(f"{each:.2f}" for each in cells), over))
        return rows

    def _stages(self) -> Sequence[Sequence[str]]:
        names = list(dict.fromkeys(name for result in self.results for name in result.stages))
        rows = [("clients", *names)]
        rows += [
            (str(each.load.clients), *(f"{each.stages[name]:.2f}" if name in each.stages else NONE for name in names))
            for each in self.results
        ]
        return rows

    def _agreements(self) -> Sequence[Sequence[str]]:
        rows: list[Sequence[str]] = [
            ("shortcut", "same top-1", "probability, largest", "pixels of 255, largest", "pixels, mean")
        ]
        for name, each in self.agreement.items():
            probability, mean = f"{each.probability_difference:.4f}", f"{each.mean_difference:.4f}"
            rows.append((name, f"{each.same_top1} of {each.pictures}", probability, str(each.largest_difference), mean))
        return rows

    def to_markdown(self) -> str:
        """A description of the machine, then the tables."""
        lines = [f"# {self.model}", "", *(f"- {name}: {value}" for name, value in self.machine.items())]
        for title, (head, *rows) in self.tables():
            lines += ["", f"## {title}", "", _line(head), _line(["---:"] * len(head)), *map(_line, rows)]
        return "\n".join(lines) + "\n"


_HEAD = (
    *("clients", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors", "mean batch"),
    *("server CPU ms", "client CPU ms", "memory MiB", "of the limit"),
)
_LIMIT_HEAD = ("part", "at", "per second", "CPU ms")


def _limit_row(limit: Limit) -> Sequence[str]:
    return limit.part, limit.setting, f"{limit.rate:.1f}", f"{limit.cpu_milliseconds:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(report: Report, path: Path) -> None:
    """Throughput and its limit, latencies, and CPU time by part. Raises ImportError if matplotlib is not installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(12, 4), layout="constrained")
    rates, latencies, cpu = figure.subplots(1, 3)
    names = [str(result.load.clients) for result in report.results]
    rates.bar(names, [result.load.rate for result in report.results], color="tab:blue", label="measured")
    limits = [limit for result in report.results if (limit := report.limit(result)) is not None]
    if limits:
        rates.plot(names, limits, "k_", markersize=30, label="limit of the machine")
    rates.set(title="Requests per second", xlabel="clients")
    for quantile in ("p50", "p95", "p99"):
        latencies.plot(names, [getattr(each.load, quantile) * 1000 for each in report.results], "o-", label=quantile)
    latencies.set(title="Milliseconds", xlabel="clients", ylim=(0, None))
    bottom = [0.0] * len(names)
    for part, value in report.least_cpu().items():
        cpu.bar(names, [value] * len(names), bottom=bottom, label=part)
        bottom = [each + value for each in bottom]
    totals = [result.server_cpu_milliseconds or 0.0 for result in report.results]
    rest = [max(0.0, total - low) for total, low in zip(totals, bottom, strict=True)]
    cpu.bar(names, rest, bottom=bottom, color="lightgray", label="all else")
    cpu.set(title="Server CPU, ms per request", xlabel="clients")
    for axes in (rates, latencies, cpu):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    figure.suptitle(report.model)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
