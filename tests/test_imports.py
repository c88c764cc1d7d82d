"""Which module may import which, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinyssl

ROOT = Path(tinyssl.__file__).parent
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in [*ROOT.glob("*.py"), *ROOT.glob("reporting/*.py")]
    if p.stem != "__init__"
)

GROUND = {"errors", "files", "intervals", "lines", "locks", "plain_yaml", "rows", "tensor_file"}
LEAVES = {
    "backbones", "bank", "budget", "calibration", "checkpoint", "colour", "compiling",
    "curve_lines", "device", "distributed", "feature_file", "folds", "fused", "heads", "loader",
    "logistic", "losses", "machine", "neighbours", "opening", "pipeline", "recipe_files",
    "remote_files", "reporting.names", "reporting.run_schema", "reporting.verdict", "run_folder",
    "schedule", "tiff",
}  # fmt: skip
# One room that is several files: what belongs together and grew too long for one.
PAIRS = {
    "augment": {"colour", "compiling", "fused"},
    "choosing": {"neighbours"},
    "components": {"neighbours"},
    "describing": {"components", "descriptors", "device"},
    "descriptors": {"augment", "colour"},
    "encoder": {"backbones", "components", "descriptors", "device"},
    "data": {"headers", "opening", "picture"},
    "grid": {"opening", "picture"},
    "headers": {"opening", "picture", "tiff"},
    "near": {"console", "describing", "encoder", "neighbours"},
    "labels": {"console", "scanning"},
    "likeness": {"neighbours"},
    "picture": {"opening", "tiff"},
    "reporting.device_tables": {"console", "reporting.run_schema"},
    "probing": {"calibration", "folds", "logistic"},
    "scanning": {"opening"},
    "scoring": {"logistic", "neighbours"},
    "spreading": {"neighbours"},
    "tuning": {"backbones", "schedule"},
    "weights": {"console", "encoder", "opening", "run_folder"},
    "watch": {"scoring"},
}


def imported(module: str) -> set[str]:
    """Modules of tinyssl that a module imports, at its top or in a function."""
    tree = ast.parse(_text(module))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tinyssl":
            path = str(node.module).removeprefix("tinyssl").removeprefix(".")
            below = {f"{path}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= (below & set(MODULES)) or ({path} - {""})
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("tinyssl.")}
    return found


def _text(module: str) -> str:
    return (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def test_the_lists_name_real_modules() -> None:
    assert set(MODULES) >= GROUND | LEAVES | set(PAIRS)


@pytest.mark.parametrize("leaf", sorted(LEAVES | GROUND))
def test_leaves_import_no_room_of_ours(leaf: str) -> None:
    assert imported(leaf) <= GROUND


@pytest.mark.parametrize("module", sorted(PAIRS))
def test_pairs_import_their_partner_only(module: str) -> None:
    assert imported(module) <= GROUND | PAIRS[module]


def test_runtime_of_bundles_needs_nothing_of_ours() -> None:
    text = (ROOT.parent / "export" / "runtime.py").read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    roots = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    roots |= {str(n.module).split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    assert roots - sys.stdlib_module_names == {"numpy", "PIL", "onnxruntime"}
    assert not [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level]


def test_no_circle() -> None:
    graph = {module: imported(module) for module in MODULES}
    while graph:
        free = [m for m, needs in graph.items() if not needs & set(graph)]
        assert free, f"these import each other in a circle: {sorted(graph)}"
        for module in free:
            del graph[module]


def test_modules_below_take_no_recipe() -> None:
    allowed = {
        "build",
        "checks",
        "cli",
        "config",
        "finetune_config",
        "finetuning",
        "own_pictures",
        "pretraining",
        "reporting.recipe_diff",
        "reporting.run_facts",
        "reporting.views",
        "run",
        "sources",
    }
    assert {m for m in MODULES if "config" in imported(m)} <= allowed


@pytest.mark.parametrize("code", ["import tinyssl", "import tinyssl.cli", "import tinyssl.labels"])
def test_light_imports_stay_light(code: str) -> None:
    check = (
        f"{code}; import sys; print([m for m in ('torch', 'timm', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["pretrain", "--help"], ["recipes"]]
)
def test_help_does_not_load_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from tinyssl.cli import main\n"
        f"try: main({arguments})\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_public_names_are_these() -> None:
    assert tinyssl.__all__ == [
        "EmbeddingTransformer", "Interrupted", "JobError", "TinysslError", "UsageError",
        "__version__", "benchmark", "check", "embed", "evaluate", "export", "finetune", "load",
        "predict", "pretrain", "report", "select",
    ]  # fmt: skip
    assert all(getattr(tinyssl, name) is not None for name in tinyssl.__all__)
    code = "import tinyssl; print(*dir(tinyssl))"  # by which prompts and notebooks complete
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {*tinyssl.__all__} <= {*done.stdout.split()}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tinyssl.nothing


@pytest.mark.parametrize("first", ["", "import tinyssl.export.runtime;"])
def test_export_is_a_function_before_and_after_its_modules_are_imported(first: str) -> None:
    code = f"import tinyssl; {first} tinyssl.export('nowhere', 'fax')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UsageError: target: got 'fax'" in done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_are_documented(module: str) -> None:
    tree = ast.parse(_text(module))
    assert ast.get_docstring(tree), f"{module} says nothing about itself"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"
