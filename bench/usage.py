"""CPU time of this process and all that it started, from /proc (Linux): before and after a load.

Processes are named by what they run, and this one is the client; threads by their task: the event
loop is the main thread of its process, and a thread with a niceness of its own computes.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CLIENT, MAIN, COMPUTING = "client", "main", "computing"
_TICKS_A_S = os.sysconf("SC_CLK_TCK")

Usage = Mapping[tuple[str, str], float]  # CPU seconds by (process, thread)


@dataclass(frozen=True, slots=True)
class _Stat:
    """The fields of a `stat` file that are used here."""

    name: str
    parent: int
    cpu_s: float
    niceness: int


def look() -> Usage:
    """CPU seconds so far, by (process, thread). What ends while we look is left out."""
    seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    for pid in _tree(os.getpid()):
        process = CLIENT if pid == os.getpid() else _name(pid)
        try:
            for thread, cpu_s in _threads(pid):
                seconds[process, thread] += cpu_s
        except OSError:  # it has ended
            continue
    return seconds


def spent(before: Usage, after: Usage) -> dict[tuple[str, str], float]:
    """CPU seconds between two looks, without what did nothing."""
    between = {key: after[key] - before.get(key, 0.0) for key in after}
    return {key: cpu_s for key, cpu_s in sorted(between.items()) if cpu_s > 0.0}


def by_process(seconds: Usage) -> dict[str, float]:
    """The same of whole processes."""
    total: defaultdict[str, float] = defaultdict(float)
    for (process, _), cpu_s in seconds.items():
        total[process] += cpu_s
    return dict(total)


def _tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            try:
                children.setdefault(_stat(entry / "stat").parent, []).append(int(entry.name))
            except OSError:
                continue
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return found


def _threads(pid: int) -> Iterator[tuple[str, float]]:
    own = _stat(PROC / str(pid) / "stat")
    for task in (PROC / str(pid) / "task").iterdir():
        try:
            stat = _stat(task / "stat")
        except OSError:
            continue
        if int(task.name) == pid:
            yield MAIN, stat.cpu_s
        else:
            yield COMPUTING if stat.niceness != own.niceness else stat.name, stat.cpu_s


def _stat(path: Path) -> _Stat:
    """Source: proc_pid_stat(5). The name is in parentheses and may hold anything."""
    name, _, rest = path.read_text(errors="replace").partition("(")[2].rpartition(")")
    fields = rest.split()  # fields[0] is the third of the manual's list
    return _Stat(name, int(fields[1]), sum(map(int, fields[11:13])) / _TICKS_A_S, int(fields[16]))


def _name(pid: int) -> str:
    """`gateway` of `python -m gateway …`, else the name of the program; "?" once it has ended."""
    try:
        words = (PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return "?"
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    program = words[0].partition(" ")[0]  # Valkey writes its address behind its name
    return Path(program).name or "?"  # a process that nobody has waited for yet has no words
