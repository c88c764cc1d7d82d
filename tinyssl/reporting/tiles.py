"""Key figures of a run, as pairs of name and value."""

from __future__ import annotations

from typing import Any

from tinyssl.reporting.run_facts import RunFacts


def tiles(facts: RunFacts) -> list[tuple[str, str]]:
    """Machine, versions, wall-clock time, memory and speed, as far as known."""
    machine = facts.machine
    versions: dict[str, Any] = machine or facts.finetuned.get("versions", {})
    speed = facts.curve("pictures_per_s")
    pairs = [
        ("wall-clock", duration(facts.seconds) if facts.seconds else ""),
        ("epochs", f"{len(facts.epochs):,}" if facts.epochs else ""),
        ("speed", f"{speed[-1][1]:,.0f} pictures/s" if speed else ""),
        ("peak memory", _megabytes(machine.get("peak_memory_mb"))),
        ("peak GPU memory", _megabytes(machine.get("peak_gpu_memory_mb"))),
        ("device", str(machine.get("device", ""))),
        ("processor", _processor(machine)),
        ("system", str(machine.get("system", ""))),
        ("tinyssl", str(facts.encoder.get("tinyssl", ""))),
        ("torch", str(versions.get("torch", ""))),
        ("Python", str(versions.get("python", ""))),
        ("seed", str(facts.encoder.get("seed", ""))),
    ]
    return [(name, value) for name, value in pairs if value]


def duration(seconds: float) -> str:
    """Such as `2 min 53 s`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} MB"


def _processor(machine: dict[str, Any]) -> str:
    if not machine.get("processor"):
        return ""
    cores = machine.get("cores")
    return f"{machine['processor']}, {cores} cores" if cores else str(machine["processor"])
