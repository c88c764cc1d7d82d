"""The table of methods in their own loops: means of sets and seeds, differences seed by seed."""

import json
from pathlib import Path

from tests.benchmarks.quality.own_table import costs, markdown, read


def put(folder: Path, name: str, score: float) -> None:
    scores = {"knn": score, "linear": score + 0.1, "10-shot": score - 0.1}
    found = {"components": scores, "last_level": dict.fromkeys(scores, 0.5)}
    told = {"seconds": 100.0, "epochs": 4.5, "scores": found}
    (folder / name).write_text(json.dumps(told))


def test_means_and_differences(tmp_path: Path) -> None:
    for seed, ours, theirs in ((0, 0.6, 0.5), (1, 0.7, 0.6)):
        for place, name in enumerate(("one-set", "other")):
            put(tmp_path, f"{name}-tinyssl-1-s{seed}.json", ours + place / 10)
            put(tmp_path, f"{name}-simclr-1-s{seed}.json", theirs + place / 10)
    put(tmp_path, "other-tinyssl-0.5-s0.json", 0.4)
    found = read(tmp_path)
    assert list(found) == ["tinyssl", "tinyssl, 0.5 of the time", "simclr"]
    lines = markdown(found, "components").splitlines()
    assert lines[2] == "| | one-set | other | mean |"
    mean = "70.0 ± 63.5 / 80.0 ± 63.5 / 60.0 ± 63.5"  # 12.7062, the t of one degree, times 5
    assert lines[4].endswith(f"| {mean} |")
    half = next(line for line in lines if "0.5 of the time |" in line)
    assert half == "| tinyssl, 0.5 of the time |  | 40.0 / 50.0 / 30.0 |  |"
    change = next(line for line in lines if line.startswith("tinyssl minus simclr"))
    assert change.endswith("2 seeds: 10.0 ± 0.0 / 10.0 ± 0.0 / 10.0 ± 0.0")
    assert "| simclr | one-set | 2 | 100 | 4.5 |" in costs(found)
