"""Reports of a benchmark: limits, tables, JSON and the chart."""

import json
import sys

import pytest

from service.bench.agreement import Agreement
from service.bench.limits import Limit
from service.bench.load import Load
from service.bench.report import Report, Result, draw


def result(clients=8, rate=500.0, server=1.5, client=0.1):
    load = Load(
        clients=clients,
        requests=int(rate * 10),
        seconds=10,
        refused=0,
        broken=0,
        p50=0.002,
        p95=0.004,
        p99=0.006,
        client_cpu_seconds=client * rate * 10 / 1000,
    )
    stages = {"request": 16.0, "decode": 10.0}
    return Result(load=load, mean_batch=2.5, server_cpu_milliseconds=server, memory_mib=150.0, stages=stages)


def limit(part, setting, rate, cpu):
    return Limit(part=part, setting=setting, rate=rate, cpu_milliseconds=cpu)


LIMITS = (
    limit("preprocessing", "1 thread", 990.0, 1.0),
    limit("preprocessing", "2 threads", 1950.0, 1.1),
    limit("Pillow", "1 thread", 400.0, 2.5),
    limit("engine", "batch 1", 4000.0, 0.5),
    limit("engine", "batch 32", 8000.0, 0.3),
    limit("HTTP", "8 clients", 9000.0, 0.1),
)


def report(**changes):
    values = {"model": "tiny", "machine": {"processor": "one, 2 cores"}, "results": (result(),), "limits": LIMITS}
    large = (limit("Pillow", "1 thread", 16.0, 60.0), limit("preprocessing", "1 thread", 60.0, 15.0))
    figures = {"largest_difference": 1, "mean_difference": 0.01, "probability_difference": 0.0001}
    agreement = {"SIMD": Agreement(pictures=5, same_top1=4, **figures)}
    values |= {"large": large, "agreement": agreement, "cores": 2, "on_gpu": False}
    return Report(**(values | changes))


def test_the_limit_of_cores_is_all_parts_and_the_clients_one_after_the_other():
    assert report().least_cpu() == {"preprocessing": 1.0, "engine": 0.3, "HTTP": 0.1}
    assert report().limit(result()) == pytest.approx(2 * 1000 / (1.0 + 0.3 + 0.1 + 0.1))


def test_one_client_waits_for_each_part_on_one_thread():
    one_thread = 1000 / 990 + 1000 / 4000 + 0.1  # preprocessing, a batch of one, HTTP
    client = result(1).client_cpu_milliseconds
    assert report().limit(result(1)) == pytest.approx(1000 / (one_thread + client))


def test_a_gpu_works_beside_the_cores():
    assert report(on_gpu=True).limit(result()) == pytest.approx(2 * 1000 / (1.0 + 0.1 + 0.1))
    slow = [each for each in LIMITS if each.part != "engine"] + [limit("engine", "batch 32", 700.0, 0.3)]
    assert report(on_gpu=True, limits=slow).limit(result()) == 700


def test_the_tables_say_where_the_cpu_goes():
    tables = dict(report().tables())
    shares = tables["CPU time of the server, ms per request"]
    assert dict(zip(*shares, strict=True)) == {
        "clients": "8",
        "preprocessing": "1.00",
        "engine": "0.30",
        "HTTP": "0.10",
        "all else": "0.10",
        "together": "1.50",
        "over preprocessing": "1.50",
    }
    load = dict(zip(*tables["Under load"], strict=True))
    assert (load["requests/s"], load["p99 ms"], load["mean batch"], load["of the limit"]) == (
        "500.0",
        "6.00",
        "2.50",
        "38%",
    )
    assert "A photograph of 12 megapixels: 0.25 of Pillow's CPU" in tables


def test_without_limits_and_without_a_process_less_is_said():
    bare = report(limits=(), large=(), agreement={}, results=(result(server=None),))
    tables = dict(bare.tables())
    assert list(tables) == ["Under load", "Time of a request in each stage, ms"]
    load = dict(zip(*tables["Under load"], strict=True))
    assert load["server CPU ms"] == load["of the limit"] == "-"


def test_markdown_has_every_table_and_the_machine():
    text = report().to_markdown()
    assert text.startswith("# tiny\n\n- processor: one, 2 cores\n")
    assert text.count("\n## ") == len(report().tables())
    assert (
        len({line.count("|") for line in text.split("## Each part alone")[1].split("\n## ")[0].splitlines() if line})
        == 1
    )


def test_json_has_everything():
    found = json.loads(json.dumps(report().to_json()))
    assert found["results"][0]["load"]["p95"] == 0.004
    assert found["limits"][0]["part"] == "preprocessing"
    assert found["limit_of_each_result"] == [pytest.approx(1333.33, abs=0.01)]


@pytest.mark.parametrize("changes", [{}, {"limits": (), "results": (result(1), result(32, server=None))}])
def test_the_chart_is_drawn(tmp_path, changes):
    draw(report(**changes), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_chart_takes_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError):
        draw(report(), tmp_path / "report.png")
