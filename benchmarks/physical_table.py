"""What benchmarks/physical.py found, as text and as a document: medians, ratios to the peer of each goal, syncs."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict

from measuring import SYNCS, Measured

Results = Mapping[str, Mapping[str, Measured]]
Syncs = Mapping[str, Mapping[str, Mapping[str, int]]]

_GOALS: Mapping[str, tuple[str, float, float | None]] = {
    "full": ("pgBackRest", 0.5, None),
    "incremental, 0.1 %": ("pgBackRest", 1 / 3, 1 / 3),
    "incremental, 1 %": ("pgBackRest", 1 / 3, 1 / 3),
    "restore": ("pgBackRest", 0.5, None),
    "backlog": ("pgBackRest", 1 / 1.5, None),
    "replay": ("cp", 1.1, None),
}
"""By the beginning of a part's name: the peer, what of its time we may take, and what of its bytes."""
_PUSH_SECONDS, _MEMORY_MIB = 0.1, 512


def ratios(results: Results) -> list[dict[str, object]]:
    """Ours by each peer, as medians over the rounds, with the goal where there is one."""
    found: list[dict[str, object]] = []
    for part, by_name in results.items():
        goal = next((each for start, each in _GOALS.items() if part.startswith(start) and "bucket" not in part), None)
        for ours, mine in by_name.items():
            for peer, theirs in by_name.items():
                if not ours.startswith("ours") or peer.startswith("ours"):
                    continue
                wanted = goal if goal is not None and peer.startswith(goal[0]) else None
                found.append(
                    {
                        "part": part,
                        "ours": ours,
                        "peer": peer,
                        "seconds": _median_ratio(mine.seconds, theirs.seconds),
                        "cpu_seconds": _median_ratio(mine.cpu_seconds, theirs.cpu_seconds),
                        "stored_bytes": _median_ratio(mine.stored_bytes, theirs.stored_bytes),
                        "goal_seconds": None if wanted is None else wanted[1],
                        "goal_bytes": None if wanted is None else wanted[2],
                    }
                )
    return found


def _median_ratio(mine: list[float] | list[int], theirs: list[float] | list[int]) -> float | None:
    if not mine or not theirs:
        return None
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def document(about: Mapping[str, object], results: Results, syncs: Syncs) -> dict[str, object]:
    """Everything, each round too."""
    rows = {part: {name: asdict(m) | {"median": m.row()} for name, m in found.items()} for part, found in results.items()}
    return {"about": dict(about), "results": rows, "ratios": ratios(results), "syncs": syncs}


def text(about: Mapping[str, object], results: Results, syncs: Syncs) -> str:
    """The same for people."""
    lines = [", ".join(f"{name} {value}" for name, value in about.items()), ""]
    columns = ("median s", "min", "max", "CPU s", "own", "peak MiB", "stored MB")
    lines.append(f"{'':58}" + "".join(f"{column:>10}" for column in columns))
    for part, by_name in results.items():
        for name, measured in by_name.items():
            lines.append(f"{part:33}{name:25}" + "".join(_cell(value) for value in measured.row().values()))
    lines += ["", "ours by theirs: seconds, CPU seconds, bytes"]
    for each in ratios(results):
        goal = each["goal_seconds"]
        wanted = f"   (goal <= {goal:.2f}" + (", bytes too)" if each["goal_bytes"] else ")") if isinstance(goal, float) else ""
        values = "".join(_cell(each[name]) for name in ("seconds", "cpu_seconds", "stored_bytes"))
        lines.append(f"{each['part']:33}{each['ours']!s:25}/ {each['peer']!s:24}{values}{wanted}")
    lines.append(f"goals that are no ratios: push of one segment <= {_PUSH_SECONDS} s; peak <= {_MEMORY_MIB} MiB")
    if syncs:
        lines += ["", f"{'syncs, counted by strace':58}" + "".join(f"{name:>17}" for name in SYNCS)]
        for name, by_part in syncs.items():
            lines += [f"{part:33}{name:25}" + "".join(f"{counts[call]:17}" for call in SYNCS) for part, counts in by_part.items()]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return (
        f"{value:10.3f}"
        if isinstance(value, float) and abs(value) < 10
        else f"{value:10.1f}"
        if isinstance(value, float)
        else f"{'-':>10}"
    )
