"""The cache says what it is: listed, pruned, never stale, one builder at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zoo

from tinyssl.caches import list_caches, prune, report
from tinyssl.data import Pictures, load_pictures
from tinyssl.errors import UsageError
from tinyssl.files import in_home
from tinyssl.locks import InUse, locked
from tinyssl.scanning import scan

Folder = Callable[..., Path]


def load(folder: Path, size: int = 16) -> Pictures:
    return load_pictures(scan([folder]), size=size, rule="crop")


def cache_root() -> Path:
    return Path(os.environ["TINYSSL_CACHE"])


def test_caches_are_listed_with_their_size(picture_folder: Folder) -> None:
    pictures = load(picture_folder())
    (cache,) = list_caches()
    assert (cache.folder, cache.state) == (pictures.folder, "current")
    assert cache.size == sum(p.stat().st_size for p in pictures.folder.iterdir())
    assert cache.told.startswith("16 x 16 x 16 x 3 uint8, first ")
    assert "1 caches" in report()


@pytest.mark.parametrize("order", ["scanned", "turned"])
def test_a_cache_is_current_in_whatever_order_it_was_made(
    order: str, picture_folder: Folder, tmp_path: Path
) -> None:
    for name in ("a", "a-b"):  # as strings a-b/ comes before a/, as paths after it
        picture_folder(f"all/{name}")
    broken = tmp_path / "all" / "a" / "broken.png"
    broken.write_bytes(b"none")
    files = scan([tmp_path / "all"])
    files = files if order == "scanned" else files[::-1]
    made = load_pictures(files, size=16, rule="crop")
    assert [path for path, _ in made.skipped] == [str(broken)]
    assert [cache.state for cache in list_caches()] == ["current"]


@pytest.mark.parametrize("change", ["touch", "replace", "remove", "same size and time"])
def test_a_changed_picture_makes_it_stale(change: str, picture_folder: Folder) -> None:
    folder = picture_folder()
    before = load(folder)
    victim = Path(before.paths[3])
    old = victim.stat()
    if change == "touch":
        os.utime(victim)
    elif change == "replace":
        zoo.rgb().save(victim)
    elif change == "remove":
        victim.unlink()
    else:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        os.utime(victim, ns=(old.st_atime_ns, old.st_mtime_ns))
    (cache,) = list_caches()
    assert cache.state == "stale"
    after = load(folder)
    assert after.folder != before.folder
    assert [c.folder for c in prune()] == [before.folder]
    assert [c.folder for c in list_caches()] == [after.folder]


def test_prune_takes_what_cannot_be_used_and_leaves_strangers(picture_folder: Folder) -> None:
    current, damaged = load(picture_folder()), load(picture_folder("others"), size=8)
    (damaged.folder / "index.json").write_text("{")
    leftover = cache_root() / ".building-dead"
    leftover.mkdir()
    (leftover / "pictures.bin").write_bytes(b"half")
    (cache_root() / "stranger").mkdir()
    (cache_root() / "stranger" / "file").touch()
    assert {c.state for c in list_caches()} == {"current", "damaged", "unfinished"}
    assert {c.folder for c in prune()} == {damaged.folder, leftover}
    assert [c.folder for c in prune(which="all")] == [current.folder]
    assert [p.name for p in cache_root().iterdir()] == ["stranger"]
    with pytest.raises(UsageError, match="allowed are stale and all"):
        prune(which="some")


def test_no_cache_is_no_error(tmp_path: Path) -> None:
    assert report(tmp_path / "nowhere").startswith("0 caches")


def test_a_cache_that_is_being_built_stays() -> None:
    building = cache_root() / ".building-now"
    building.mkdir(parents=True)
    with locked(building):
        assert prune(which="all") == []
    assert building.exists()


def test_a_build_that_ends_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    building, listed = cache_root() / ".building-now", Path.iterdir
    building.mkdir(parents=True)

    def ending(folder: Path) -> Iterator[Path]:
        if folder == building:
            folder.rename(folder.with_name("0" * 20))
        return iter(list(listed(folder)))

    monkeypatch.setattr(Path, "iterdir", ending)
    assert list_caches() == []


def test_what_a_killed_build_left_is_used_up(picture_folder: Folder) -> None:
    folder = picture_folder()
    first = load(folder)
    leftover = cache_root() / f".building-{first.folder.name}"
    first.folder.rename(leftover)
    (leftover / "index.json").unlink()
    (leftover / ".index.json.abc.tmp").write_text("half")
    again = load(folder)
    assert again.digest == first.digest
    assert [p.name for p in cache_root().iterdir()] == [first.folder.name]
    assert sorted(p.name for p in again.folder.iterdir()) == [
        "index.json", "pictures.bin", "skipped.csv",
    ]  # fmt: skip


HOLD = """
import sys, time
from pathlib import Path
from tinyssl.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InUse), locked(tmp_path):
            pass
        process.kill()
        process.wait()
    with locked(tmp_path):
        pass


BUILD = """
import json, sys
from tinyssl.data import load_pictures
from tinyssl.scanning import scan
found = load_pictures(scan([sys.argv[1]]), size=16, rule="crop", workers=1)
print(json.dumps([found.digest, str(found.folder)]))
"""


def test_two_processes_build_one_cache(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(200):
        zoo.rgb(20 + number, 30).save(data / f"{number}.png")
    command = [sys.executable, "-c", BUILD, str(data)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert all(process.returncode == 0 for process in started)
    assert len({tuple(line) for line in told}) == 1
    assert [p.name for p in cache_root().iterdir()] == [Path(told[0][1]).name]


def test_prune_takes_nothing_from_a_folder_of_pictures(picture_folder: Folder) -> None:
    """Whoever names the pictures with --prune must not lose those beside a file index.json."""
    folder = picture_folder()
    (folder / "dark" / "index.json").write_text('{"classes": ["dark"]}')
    before = sorted(folder.rglob("*"))
    assert prune(folder, "all") == []
    assert sorted(folder.rglob("*")) == before


def test_a_cache_of_an_earlier_format_is_stale(
    picture_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = picture_folder()
    with monkeypatch.context() as patch:
        patch.setattr("tinyssl.data.CACHE_FORMAT", 1)
        earlier = load(folder)
    now = load(folder)
    assert {c.folder: c.state for c in list_caches()} == {
        earlier.folder: "stale", now.folder: "current"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["~nobody-of-that-name", "~"])
def test_a_name_may_begin_like_a_home(name: str) -> None:
    assert in_home(name) == (Path.home() if name == "~" else Path(name))


def test_the_folder_may_be_in_the_home(
    picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = load_pictures(scan([picture_folder()]), size=16, rule="crop", cache_dir=Path("~/kept"))
    assert made.folder.parent == tmp_path / "kept"
