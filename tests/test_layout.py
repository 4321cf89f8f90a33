"""The picture in docs/design.md, and the rules that keep the tree safe, read from the sources."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SKIPPED = {"__pycache__", "results"}
FLOOR = {"shared.protocol", "shared.config", "shared.common"}
# Room -> the rooms it may enter besides itself. Exactly the arrows of docs/design.md.
DOORS: dict[str, set[str]] = {
    "kernels": set(),
    "shared.common": set(),
    "shared.config": {"shared.common"},
    "shared.protocol": {"shared.common", "shared.config"},
    "shared.bus": FLOOR,
    "shared.engine": FLOOR | {"kernels"},
    "gateway": FLOOR | {"shared.bus"},
    "draft_worker": FLOOR | {"shared.bus", "shared.engine", "kernels"},
    "target_worker": FLOOR | {"shared.bus", "shared.engine", "kernels"},
    "stack": FLOOR | {"shared.bus"},
}
# Room -> the locks that must hold what it imports.
LOCKS: dict[str, tuple[str, ...]] = {
    "kernels": ("worker", "torch"),
    "shared.common": ("gateway", "worker"),
    "shared.config": ("gateway", "worker"),
    "shared.protocol": ("gateway", "worker"),
    "shared.bus": ("gateway", "worker"),
    "shared.engine": ("worker",),
    "gateway": ("gateway",),
    "draft_worker": ("worker",),
    "target_worker": ("worker",),
    "stack": ("all",),
}
TORCH_ROOMS = {"kernels", "shared.engine", "draft_worker", "target_worker"}
NOT_CODE = re.compile(r"\.(png|safetensors|json|lua)$")
# Split, so that this file does not find itself.
FORBIDDEN_PLACES = tuple(
    "".join(parts)
    for parts in [
        ("/ro", "ot/"), ("/ho", "me/"), ("/Us", "ers/"), ("/wo", "rk/"), ("/op", "t/"),
        ("py", "pi.org"), ("pythonho", "sted.org"), ("download.pyto", "rch.org"),
        ("ghc", "r.io"), ("docker", ".io"), ("qua", "y.io"), ("nvc", "r.io"), ("gc", "r.io"),
    ]
)  # fmt: skip


def sources(*folders: str) -> list[Path]:
    """All Python files under some folders of the project."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if not SKIPPED & set(path.parts)]


EVERYTHING = ("shared", "kernels", "gateway", "draft_worker", "target_worker", "stack", "bench")
ALL = sources(*EVERYTHING, "models", "tests")
CODE = sources(*EVERYTHING)


def name(path: Path) -> str:
    """How a file is called in a message."""
    return str(path.relative_to(ROOT))


def room(module: str) -> str:
    """The room a module name belongs to: `shared.bus` or `gateway`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "shared" else parts[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, wherever in the file, with its line."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: imports are absolute"
            assert node.module is not None
            yield node.module, node.lineno
            if node.module == "shared":
                yield from ((f"shared.{alias.name}", node.lineno) for alias in node.names)


def room_files(which: str) -> list[Path]:
    return sources(which.replace(".", "/"))


def is_ours(module: str) -> bool:
    return (ROOT / module.partition(".")[0]).is_dir()


@pytest.mark.parametrize("which", DOORS)
def test_a_room_enters_only_the_rooms_it_may(which: str) -> None:
    """The arrows of the picture; roles share messages, never code."""
    allowed = DOORS[which] | {which, "shared"}
    wrong = [
        f"{name(path)}:{line} imports {module}"
        for path in room_files(which)
        for module, line in imports(path)
        if is_ours(module) and room(module) not in allowed
    ]
    assert wrong == []


def test_every_room_is_in_the_picture() -> None:
    """A new package gets its arrows, or this fails."""
    rooms = {room(".".join(path.relative_to(ROOT).parts[:2])) for path in CODE}
    assert rooms - {"bench", "shared.__init__"} == set(DOORS)


@pytest.mark.parametrize("which", DOORS)
def test_every_import_is_in_the_lock_of_its_room(which: str) -> None:
    """What is imported is installed with a hash; torch, which brings Triton, is only pinned."""
    homes = importlib.metadata.packages_distributions()
    wrong = []
    for path in room_files(which):
        for module, line in imports(path):
            top = module.split(".")[0]
            if is_ours(module) or top in sys.stdlib_module_names:
                continue
            if top in {"torch", "triton"} and which in TORCH_ROOMS:
                continue
            names = {normalised(one) for one in homes.get(top, [])}
            wrong += [
                f"{name(path)}:{line} imports {module}, not in {lock}"
                for lock in LOCKS[which]
                if lock != "torch" and not names & locked(lock)
            ]
    assert wrong == []


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def locked(lock: str) -> set[str]:
    """The distributions of `requirements/<lock>.txt`."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return {normalised(one) for one in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}


@pytest.mark.parametrize("lock", ["all", "gateway", "worker"])
def test_a_lock_has_hashes_and_neither_torch_nor_kernels(lock: str) -> None:
    """Torch's builds differ by machine; a package named `kernels` would collide with ours."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    pins = re.findall(r"^\S+==", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\S+==.*\\\n    --hash=sha256:", text, re.MULTILINE))
    assert not {"torch", "triton", "kernels", "outrider"} & locked(lock)


def test_torch_is_pinned_beside_the_lock() -> None:
    """To one version."""
    text = (ROOT / "requirements" / "torch.txt").read_text()
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+\n", text)


def test_the_gateway_starts_without_torch() -> None:
    """All of its modules load where nothing of a worker is installed."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources("gateway")
    ]
    code = (
        "import importlib, sys\n"
        "for name in ('torch', 'transformers', 'tokenizers', 'safetensors', 'numpy', 'jinja2'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "assert 'shared.engine' not in sys.modules and 'kernels' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_distribution_is_built() -> None:
    """An installed `kernels` would overwrite, or be taken for, the one transformers looks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "build-system" not in project
    assert project["tool"]["uv"]["package"] is False


def test_kernels_imports_nothing_and_is_of_version_0() -> None:
    """transformers reads the version of whatever is called `kernels` and then looks elsewhere."""
    tree = ast.parse((ROOT / "kernels" / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    import kernels  # noqa: PLC0415 - what this test is about

    assert kernels.__version__ == "0"


def test_tests_are_no_packages() -> None:
    """`tests/kernels/__init__.py` would make pytest take it for `kernels`."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "--import-mode=importlib" in options["addopts"]
    assert options["pythonpath"] == ["."]


def test_a_file_can_be_read_in_one_sitting() -> None:
    """At most 400 lines a file and 60 a function."""
    wrong = []
    for path in ALL:
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            wrong.append(f"{name(path)} has {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                num_lines = node.end_lineno - node.lineno + 1
                if num_lines > MAX_FUNCTION_LINES:
                    wrong.append(f"{name(path)}: {node.name} has {num_lines} lines")
    assert wrong == []


def test_nothing_runs_code_that_it_reads() -> None:
    """No pickle in any form, no eval or exec, no code from a model directory."""
    wrong = []
    for path in ALL:
        wrong += [
            f"{name(path)}:{line} imports {module}"
            for module, line in imports(path)
            if module.partition(".")[0] in PICKLES
        ]
        wrong += [
            f"{name(path)}:{node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and runs_code(node)
        ]
    assert wrong == []


def runs_code(call: ast.Call) -> bool:
    """Whether a call may run what it reads."""
    is_trusting = any(
        keyword.arg in {"trust_remote_code", "allow_pickle"}
        and ast.unparse(keyword.value) != "False"
        for keyword in call.keywords
    )
    return is_trusting or ast.unparse(call.func) in {"eval", "exec", "torch.load", "__import__"}


def test_no_file_names_a_machine_or_a_registry() -> None:
    """The tree works wherever it is cloned."""
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    listed = done.stdout.splitlines() or [name(path) for path in ALL]
    wrong = []
    for entry in listed:
        path = ROOT / entry
        if not path.is_file() or NOT_CODE.search(entry) or entry == "LICENSE":
            continue
        text = path.read_text()
        wrong += [f"{entry}: {place}" for place in FORBIDDEN_PLACES if place in text]
    assert wrong == []
