"""The house rules that a linter does not know: which package may import which, and what nobody writes.

Each rule is also tried on a piece of code that breaks it, so that a rule that has gone blind is noticed.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "alidade"
MODULES = sorted(SOURCE.rglob("*.py"))
EVERYWHERE = sorted(p for folder in ("src", "tests", "scripts", "recipes") for p in (ROOT / folder).rglob("*.py"))

LEVELS = {
    "errors": 0,
    "imagery": 1,
    "models": 2,
    "training": 3,
    "evaluation": 3,
    "search": 4,
    "ablation": 4,
    "server": 5,
    "cli": 6,
}
"""Imports go down only; packages of one level do not import each other."""
TOP = 7
"""``alidade`` itself, which names what people use and imports it when it is asked for."""
MAX_LINES = 400
MAX_PUBLIC = 12

Found = Iterator[str]


def package_of(path: Path) -> str:
    """The part of the house a module lies in: ``"imagery"``, ``"errors"``; ``""`` for ``alidade/__init__.py``."""
    first = path.relative_to(SOURCE).parts[0]
    return "cli" if first == "__main__.py" else "" if first == "__init__.py" else first.removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import anywhere in a module, also inside functions and ``if TYPE_CHECKING``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def arrows(path: Path, tree: ast.AST) -> Found:
    """Imports that go up, or sideways between packages of one level, or that hide where they go."""
    here = package_of(path)
    if here == "":
        return
    for line, name in imported(tree):
        parts = name.split(".")
        if name.startswith("."):
            yield f"{line}: relative import {name}"
        elif parts[0] == "alidade":
            there = parts[1] if len(parts) > 1 and parts[1] in LEVELS else ""
            allowed = there == here or LEVELS.get(there, TOP) < LEVELS[here] or (there == "" and here == "cli")
            if not allowed:
                yield f"{line}: {here} imports {name}"


def eager_imports(path: Path, tree: ast.AST) -> Found:
    """Imports that ``import alidade`` would run: everything there is lazy."""
    if package_of(path) == "" and isinstance(tree, ast.Module):
        top = ast.Module([n for n in tree.body if not isinstance(n, ast.If)], [])
        yield from (f"{line}: {name}" for line, name in imported(top) if name.startswith(("alidade", "torch", ".")))


def raster_openings(path: Path, tree: ast.AST) -> Found:
    """Raster files opened outside ``imagery/files.py``."""
    if path == SOURCE / "imagery" / "files.py":
        return
    for line, name in imported(tree):
        if re.fullmatch(r"rasterio\.(open|MemoryFile|io\.(MemoryFile|ZipMemoryFile|FilePath)|(vrt|shutil)\b.*)", name):
            yield f"{line}: {name}"
        if name.split(".")[0] == "osgeo":
            yield f"{line}: {name}"
    for node, name in calls(tree):
        # a benchmark may write its own scene piece by piece: a file made by us is not a file from outside
        writes = len(node.args) > 1 and ast.unparse(node.args[1]) == "'w'"
        if (name == "rasterio.open" and not writes) or name.split(".")[-1] == "MemoryFile":
            yield f"{node.lineno}: {name}()"


def unsafe_loads(path: Path, tree: ast.AST) -> Found:
    """Weights loaded by unpickling more than tensors."""
    for node, name in calls(tree):
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name == "torch.load" and options.get("weights_only") != "True":
            yield f"{node.lineno}: torch.load without weights_only=True"
        if name in ("pickle.load", "pickle.loads"):
            yield f"{node.lineno}: {name}"
    yield from (f"{line}: {name}" for line, name in imported(tree) if name == "torch.load")


def prints(path: Path, tree: ast.AST) -> Found:
    """Words for the console that do not go through the command line's own printer."""
    yield from (f"{node.lineno}: print()" for node, name in calls(tree) if name == "print")


def broad_handlers(path: Path, tree: ast.AST) -> Found:
    """Handlers that would also swallow mistakes in the code; one that ends by raising again swallows nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = [] if node.type is None else ast.unparse(node.type).strip("()").split(", ")
            last = node.body[-1]
            passes_on = kinds == ["BaseException"] and isinstance(last, ast.Raise) and last.exc is None
            if not kinds or ({"Exception", "BaseException"} & set(kinds) and not passes_on):
                yield f"{node.lineno}: except {', '.join(kinds)}"


def sinks(path: Path, tree: ast.AST) -> Found:
    """Functions that take any keyword, so that a misspelt one goes unnoticed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and node.args.kwarg:
            yield f"{node.lineno}: **{node.args.kwarg.arg}"


def torch_below_models(path: Path, tree: ast.AST) -> Found:
    """torch, which takes seconds to import, below the packages that need it."""
    if LEVELS.get(package_of(path), TOP) < LEVELS["models"]:
        yield from (f"{line}: {name}" for line, name in imported(tree) if name.split(".")[0] == "torch")


def torchvision(path: Path, tree: ast.AST) -> Found:
    """torchvision, of which no build fits the torch that is pinned."""
    yield from (f"{line}: {name}" for line, name in imported(tree) if name.split(".")[0] == "torchvision")


Rule = Callable[[Path, ast.AST], Found]
IMAGERY, MODELS, SEARCH = SOURCE / "imagery/x.py", SOURCE / "models/x.py", SOURCE / "search/x.py"
RULES: dict[Rule, list[tuple[Path, str]]] = {
    arrows: [
        (IMAGERY, "from alidade.models.tokens import Tokens"),
        (IMAGERY, "def f():\n    import alidade.search.scan"),
        (IMAGERY, "from alidade import models"),
        (IMAGERY, "from . import bands"),
        (MODELS, "if TYPE_CHECKING:\n    from alidade.cli import main"),
        (SOURCE / "training/x.py", "from alidade.evaluation import bench"),
        (SOURCE / "server/x.py", "from alidade.cli import main"),
        (SOURCE / "errors.py", "from alidade.imagery.bands import Band"),
        (SEARCH, "from alidade import read"),
    ],
    eager_imports: [
        (SOURCE / "__init__.py", "from alidade.models.registry import load"),
        (SOURCE / "__init__.py", "import torch"),
    ],
    raster_openings: [
        (SEARCH, "import rasterio\nrasterio.open('a.tif')"),
        (SEARCH, "import rasterio\nrasterio.open('a.tif', 'r+')"),
        (SEARCH, "from rasterio import open as open_file"),
        (SEARCH, "from rasterio.io import MemoryFile"),
        (SEARCH, "import rasterio.io\nrasterio.io.MemoryFile(b'')"),
        (SEARCH, "from rasterio.vrt import WarpedVRT"),
        (SEARCH, "from osgeo import gdal"),
    ],
    unsafe_loads: [
        (MODELS, "torch.load(path)"),
        (MODELS, "torch.load(path, weights_only=False)"),
        (MODELS, "torch.load(path, weights_only=flag)"),
        (MODELS, "from torch import load"),
        (MODELS, "pickle.loads(data)"),
    ],
    prints: [(MODELS, "print('hello')")],
    broad_handlers: [
        (MODELS, "try:\n    f()\nexcept:\n    pass"),
        (MODELS, "try:\n    f()\nexcept Exception:\n    raise"),
        (MODELS, "try:\n    f()\nexcept (ValueError, Exception) as e:\n    pass"),
        (MODELS, "try:\n    f()\nexcept BaseException:\n    g()"),
    ],
    sinks: [(MODELS, "def f(**kwargs): pass"), (MODELS, "f = lambda **options: 1")],
    torch_below_models: [(IMAGERY, "def f():\n    import torch"), (SOURCE / "errors.py", "from torch import nn")],
    torchvision: [(ROOT / "tests/x.py", "from torchvision.ops import nms")],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_is_kept(rule: Rule) -> None:
    files = EVERYWHERE if rule is torchvision else MODULES
    assert len(files) > 30
    broken = [
        f"{path.relative_to(ROOT)}:{found}" for path in files for found in rule(path, ast.parse(path.read_text()))
    ]
    assert broken == [], rule.__doc__


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    [(rule, path, code) for rule, examples in RULES.items() for path, code in examples],
    ids=lambda value: getattr(value, "__name__", None) or str(value).replace("\n", " ")[-40:],
)
def test_rule_sees_what_breaks_it(rule: Rule, path: Path, code: str) -> None:
    assert list(rule(path, ast.parse(code)))


def test_arrows_that_are_right() -> None:
    code = "from alidade.imagery.bands import Band\nfrom alidade.errors import AlidadeError\nimport numpy"
    assert [list(arrows(path, ast.parse(code))) for path in (IMAGERY, MODELS, SEARCH)] == [[], [], []]
    assert list(arrows(SOURCE / "cli/x.py", ast.parse("from alidade import __version__"))) == []


def test_every_module_has_a_floor() -> None:
    assert {package_of(path) for path in MODULES} - set(LEVELS) - {""} == set()


def test_files_are_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in MODULES}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_few_public_names() -> None:
    namespace = ast.parse((SOURCE / "__init__.py").read_text())
    assigned = [n for n in namespace.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    assert len(assigned) == 1
    names = ast.literal_eval(assigned[0].value)
    assert 1 <= len(names) <= MAX_PUBLIC
    assert len(set(names)) == len(names)


def test_torchvision_is_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    listed = [*project["dependencies"], *(name for extra in extras for name in extra)]
    assert any(d.startswith("torch>=") for d in listed)
    banned = ("torchvision", "timm", "open_clip", "open-clip", "torchgeo", "segmentation-models")
    assert [d for d in listed if d.startswith(banned)] == []
