"""What a stranger installs: the built packages hold all that is needed, and nothing else."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import tinyssl
from tinyssl.recipe_files import recipe_names

ROOT = Path(tinyssl.__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_wheel_holds_code_recipes_and_licence(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"tinyssl/{p.name}" for p in (ROOT / "tinyssl").glob("*.py")} <= set(names)
    reporting = {p.name for p in (ROOT / "tinyssl" / "reporting").glob("*.py")}
    assert {f"tinyssl/reporting/{name}" for name in reporting} <= set(names)
    assert {f"tinyssl/recipes/{name}.yaml" for name in recipe_names()} <= set(names)
    templates = {p.name for p in (ROOT / "tinyssl" / "reporting" / "templates").iterdir()}
    assert {f"tinyssl/reporting/templates/{name}" for name in templates} <= set(names)
    assert {"tinyssl/py.typed", "tinyssl/export/__init__.py"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]
    assert not [name for name in names if name.endswith((".png", ".md"))]


def test_sdist_builds_the_same_wheel(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"recipes/{name}.yaml" for name in recipe_names()} <= names
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert tests | {"CHANGELOG.md", "LICENSE", "export/README.md"} <= names


def test_installed_wheel_finds_its_recipes(built: Path, tmp_path: Path) -> None:
    """Away from the source tree, with this environment's libraries."""
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import tinyssl; from tinyssl.recipe_files import purposes\n"
        "print(tinyssl.__file__); print(sorted(purposes()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    place, names = done.stdout.strip().splitlines()
    assert place.startswith(str(target))
    assert names == str(recipe_names())


def test_version_stands_in_the_changelog() -> None:
    assert f"## {tinyssl.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
