"""README and docs say what the code does: their lists are complete, their commands run, their links lead somewhere."""

import inspect
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from starlette.routing import Route

from models.artifact import artifact
from models.inputs import NORMALIZATIONS, ImageInput
from service.__main__ import app
from service.api import admin, predict
from service.api.routes import router
from service.repository.routing import Part, Routing
from service.settings import DEFAULT_REPOSITORY, Settings
from tests import tables
from tests.servers import until
from tests.tables import DOCS, ROOT, rows

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".pt2", ".keras", ".h5", ".weights.h5", ".index", ".onnx")
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
URL = "http://127.0.0.1:8000"


def name(page):
    return str(page.relative_to(ROOT))


def page(path):
    return (DOCS / path).read_text()


# The tables.


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda table: f"{table.page}-{table.heading}")
def test_every_table_is_what_the_code_says(table):
    """`make tables` writes those that are not."""
    assert rows(page(table.page), table.heading) == table.rows()
    assert table.rows()


def test_a_table_is_written_over_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    path = tmp_path / "page.md"
    path.write_text("# Page\n\n| a |\n| --- |\n\n## Names\n\nText.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nMore.\n")
    tables.write(tables.Table("page.md", "## Names", "a | b", lambda: [[r"\1", ""], ["3", "4"]]))
    assert path.read_text() == (
        "# Page\n\n| a |\n| --- |\n\n## Names\n\nText.\n\n| a | b |\n| --- | --- |\n| \\1 |  |\n| 3 | 4 |\n\nMore.\n"
    )
    assert rows(path.read_text(), "## Names") == [["\\1", ""], ["3", "4"]]


def routes_of(routes):
    return [f"`{method} {route.path}`" for route in routes if isinstance(route, Route) for method in route.methods]


def test_every_route_is_listed():
    listed = [row[0] for row in rows(page("reference/api.md"), "## Routes")]
    assert listed == [*routes_of([predict.route, *router.routes]), "`GET /docs`"]


def test_every_route_of_the_admin_api_is_listed():
    short = [
        route.replace(" /admin/models/{model}", " ").replace(" `", "`") for route in routes_of(admin.router.routes)
    ]
    assert [row[0] for row in rows(page("reference/admin-api.md"), "## Routes")] == short


def test_every_key_of_a_routing_toml_is_told():
    text = page("guides/versions-and-swapping.md")
    for key in (*Routing.model_fields, *Part.model_fields):
        assert re.search(rf"^\[?{key}\b|`{key}[` ]", text, re.MULTILINE), key


def test_every_command_is_told():
    text = page("reference/command-line.md")
    for command in tables.commands():
        assert f"`menagerie {command}" in text


def test_every_key_of_a_model_toml_is_told():
    reference = page("reference/model-toml.md")
    keys = {row[0].strip("`[]") for row in rows(reference, "## Keys")}
    assert keys == set(artifact.ModelConfig.model_fields) - {"architecture"}
    assert "`architecture`" in reference
    for word in (*NORMALIZATIONS, *artifact.Batching.model_fields):
        assert word in reference
    assert set(ImageInput.model_fields) <= set(re.findall(r"`(\w+)`", reference))
    for suffix in SUFFIXES:
        assert suffix in page("guides/weights-and-formats.md")


def test_the_default_models_are_named():
    for model in DEFAULT_REPOSITORY.iterdir():
        assert f"`{model.name}`" in README
    assert inspect.getdoc(app.registered_commands[0].callback)


def tree():
    """The files that the tree of the architecture page names; of a package without names, all of them."""
    (block,) = re.findall(r"^```text\n(service/.*?)^```", page("explanation/architecture.md"), re.MULTILINE | re.DOTALL)
    path, files, packages = [], set(), set()
    for line in block.splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        path = path[: indent // 2]
        names = re.split(r" {3,}", text)[0]
        if names.endswith("/"):
            path.append(names)
            packages.add("".join(path))
        else:
            files |= {"".join(path) + word + ".py" for word in names.split("  ")}
    return files, packages


def test_the_tree_of_the_architecture_page_is_the_code():
    files, packages = tree()
    assert all((ROOT / package).is_dir() for package in packages)
    listed = {file.rpartition("/")[0] + "/" for file in files}  # of other packages, only the package is named
    real = {str(path.relative_to(ROOT)) for top in ("service", "models") for path in (ROOT / top).rglob("*.py")}
    real = {name for name in real if not name.endswith("/__init__.py")}
    assert {name for name in real if name.rpartition("/")[0] + "/" in listed} == files
    for name in real - files:
        assert name.rpartition("/")[0] + "/" in packages, name


# The links.


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=name)
def test_every_file_that_is_named_exists(path):
    """Of the changelog, only when it was written; a name in capitals stands for any."""
    for named in re.findall(r"`((?:service|models|deploy)/(?![\w/]*[A-Z]+\.py)[\w./]+)`", path.read_text()):
        assert (ROOT / named).exists(), named


def prose(text):
    """A page without its code."""
    return re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """What a link may name of a page: its headings, as sites and code hosts spell them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path, within):
    """The links of a page that lead nowhere, or out of a directory."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"\w+:", link):  # elsewhere: not asked
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if (
            not target.is_relative_to(within)
            or not target.exists()
            or (anchor and anchor not in anchors(target.read_text()))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_link_leads_somewhere(path):
    """From a page of the site to another: the site has no other files."""
    assert broken_links(path, DOCS if path.is_relative_to(DOCS) else ROOT) == []


@pytest.mark.parametrize(
    ("link", "is_broken"),
    [
        ("other.md", False),
        ("other.md#a-heading-of-its-own", False),
        ("#page", False),
        ("https://example.org/gone", False),
        ("gone.md", True),
        ("other.md#gone", True),
        ("other.md#not-a-heading", True),
        ("#gone", True),
        ("../outside.md", True),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link, is_broken, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "outside.md").touch()
    (site / "other.md").write_text("# Other\n\n## A heading, of its `own`\n\n```\n# Not a heading\n```\n")
    (site / "page.md").write_text(f"# Page\n\nA [link]({link}), and `code[0](gone.md)`.\n")
    assert broken_links(site / "page.md", site) == [link] * is_broken


def test_every_page_is_in_the_navigation():
    def pages(entries):
        for entry in entries:
            values = entry.values() if isinstance(entry, dict) else [entry]
            for value in values:
                yield from [value] if isinstance(value, str) else pages(value)

    navigation = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(pages(navigation)) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


# The commands.


def console(text):
    """Each command of a page with what it prints."""
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for part in block.removeprefix("$ ").split("\n$ "):
            command, _, output = part.partition("\n")
            yield command, output.strip()


def commands():
    """Those of all pages but the tutorial, whose commands follow upon each other."""
    return [pair for path in PAGES if path != DOCS / "tutorial.md" for pair in console(path.read_text())]


def test_the_make_targets_exist():
    targets = subprocess.run(["make", "-pn"], cwd=ROOT, check=False, capture_output=True, text=True).stdout
    named = {command for command, _ in commands() if command.startswith("make ")}
    named |= {command for path in PAGES for command in re.findall(r"`(make [\w-]+)`", path.read_text())}
    for command in named:
        assert f"\n{command.removeprefix('make ')}:" in targets
    assert {"make serve", "make test", "make docs"} <= named


@pytest.mark.slow
def test_the_curl_commands_answer_as_shown(serve):
    curls = [(command, output) for command, output in commands() if command.startswith("curl ") and "$" not in command]
    assert len({command for command, _ in curls}) >= 4
    server = serve(cache=Settings().cache).wait_ready()
    for command, output in curls:
        words = [word.replace(URL, server.url) for word in shlex.split(command)]
        answer = subprocess.run([*words, "--silent"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        assert rounded(answer) == rounded(output)


def rounded(answer):
    """Probabilities to three places: processors differ in the last ones."""
    return re.sub(r"0\.\d{3,}", lambda number: f"{float(number[0]):.3f}", answer)


@pytest.mark.slow
def test_your_own_weights_are_five_lines(serve, tmp_path):
    from tests.models.make_weights import make_weights

    make_weights("torch", "efficientnet_lite0", tmp_path / "weights.pth", num_classes=3)
    lines = [command for command, _ in console(README) if "my_models" in command]
    assert len(lines) == 5
    *prepare, command = lines
    for line in prepare:
        subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    assert command.endswith("menagerie serve --repository my_models")
    server = serve(repository=tmp_path / "my_models").wait_ready()
    assert server.get("/models/flowers/labels").json()["labels"] == ["daisy", "rose", "tulip"]
    assert set(lines) <= {command for command, _ in console(page("guides/weights-and-formats.md"))}


@pytest.mark.slow
def test_the_tutorial_goes_as_shown(serve, tmp_path):
    """But for its figures: they are this processor's."""
    (make, _), (install, _), (train, trained), (start, log), *steps = console(page("tutorial.md"))
    assert make == "make serve"
    assert "pip install" in install
    assert start.endswith("menagerie serve --repository trained")
    here = {
        ".venv/bin/menagerie": f"{sys.executable} -m service",
        ".venv/bin/python": sys.executable,
        "trained/": f"{tmp_path}/trained/",
        "seven.png": f"{tmp_path}/seven.png",
        "rollback.json": f"{tmp_path}/rollback.json",
    }
    check_step(train, trained, here)
    settings = {setting.lower(): value for setting, value in re.findall(r"MENAGERIE_(\w+)=(\S+)", start)}
    server = serve(repository=tmp_path / "trained", **settings).wait_ready()
    converting = [event["step"] for event in server.events() if event["event"] == "converting"]
    assert converting == re.findall(r"converting .* step=(\w+)", log)

    def is_live(version):
        return server.get("/models/handwriting").json()["live"] == version

    for command, output in steps:
        if version := re.search(r'"version":(\d+)', output):
            until(lambda version=int(version[1]): is_live(version))
        check_step(command.replace("curl ", "curl --silent "), output, here | {URL: server.url})


def check_step(command, output, here):
    """Runs one command of the tutorial, with what it names in the places that the test has for it."""
    shown = re.compile("|".join(map(re.escape, here)))
    command, output = (shown.sub(lambda found: here[found[0]], text) for text in (command, output))
    told = subprocess.run(command, shell=True, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert figureless(told.strip()) == figureless(output)


def figureless(text):
    return re.sub(r"\d+\.\d+|(?<=best epoch )\d", "0", text)
