"""Results as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import median

GOALS = {"first copy": 80_000, "insert": 60_000, "update": 45_000, "delete": 80_000}
"""Rows a second; single-row transactions: 20,000."""


@dataclass(frozen=True)
class Throughput:
    """One piece of work: `rows` in `seconds`, and in `yardstick_seconds` with nothing done to them.

    CPU in microseconds a row: of the replicator's process, and of the Postgres processes that work for it alone.
    """

    name: str
    rows: int
    seconds: float
    yardstick_seconds: float
    python_cpu_us: float
    postgres_cpu_us: float
    peak_megabytes: float

    def line(self) -> str:
        """A line of the table."""
        rate, yardstick = self.rows / self.seconds, self.rows / self.yardstick_seconds
        return (
            f"{self.name:26}{self.rows:>10,}{rate:>10,.0f}/s{yardstick:>12,.0f}/s{rate / yardstick:>8.2f}"
            f"{self.python_cpu_us:>8.1f}{self.postgres_cpu_us:>10.1f}{self.peak_megabytes:>8.0f}"
        )


HEADING = f"{'':26}{'rows':>10}{'rows/s':>12}{'yardstick':>14}{'ratio':>8}{'CPU µs':>8}{'Postgres':>10}{'MB':>8}"


@dataclass(frozen=True)
class Latency:
    """Milliseconds from a commit's acknowledgement to the announcement of the checkpoint that shows it."""

    name: str
    samples: int
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, name: str, milliseconds: Iterable[float]) -> Latency:
        """The percentiles of some samples."""
        ordered = sorted(milliseconds)
        return cls(name, len(ordered), *(ordered[int(len(ordered) * part)] for part in (0.5, 0.95, 0.99)))

    def line(self) -> str:
        """A line of text."""
        return f"{self.name}: p50 {self.p50:.1f}, p95 {self.p95:.1f}, p99 {self.p99:.1f} ms ({self.samples} samples)"


Result = Throughput | Latency


def medians(runs: Iterable[Iterable[Result]]) -> list[Result]:
    """One result for each name: every figure the median of its runs."""
    by_name: dict[str, list[Result]] = defaultdict(list)
    for run in runs:
        for result in run:
            by_name[result.name].append(result)
    return [_median(results) for results in by_name.values()]


def as_json(machine: dict[str, object], results: Iterable[Result]) -> str:
    """Everything, for programs."""
    return json.dumps({"machine": machine, "results": [asdict(result) for result in results]}, indent=1)


def _median(results: list[Result]) -> Result:
    figures = {
        name: median(getattr(result, name) for result in results) for name in asdict(results[0]) if name != "name"
    }
    return type(results[0])(name=results[0].name, **figures)
