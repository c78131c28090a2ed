"""The format of the operations in storage: a number that a release counts up when it makes other ones of equal rows.

Equal rules and equal rows must give equal operations, whoever makes them: a device's checksum depends on it. So what is
made of a row (its JSON, ids, subkeys, checksums) may only change together with this number. It is a part of the
identity of everything that a plan fills. A replicator that counts it up therefore fills all definitions anew, beside
those that are served and that it goes on feeding as before, and swaps them, as it does for other rules.

A release that makes operations of format N + 1 keeps knowing N, of which the storage still is when its first process
starts. It can be preceded by one that knows N + 1 and still fills N; then no process is refused at any moment of a
rolling restart, in whatever order.
"""

from __future__ import annotations

from ..exceptions import ConfigurationError

FORMAT = 1
"""The format that this release fills."""

KNOWN_FORMATS = range(1, 2)
"""The formats that this release can fill and serve."""


def unknown_format(number: int) -> str | None:
    """Why operations of a format cannot be served or fed by this release, with the way out; None if they can."""
    if number in KNOWN_FORMATS:
        return None
    known = f"this release of django_localsync knows {KNOWN_FORMATS[0]} to {KNOWN_FORMATS[-1]}"
    if number > KNOWN_FORMATS[-1]:
        return f"bucket storage has format {number}, {known}; a newer release filled it: install that one here, too"
    return (
        f"bucket storage has format {number}, {known}; let run_replicator of this release fill it anew, "
        "and keep processes of the former release until it has"
    )


def check_format(number: int) -> None:
    """Raise ConfigurationError for a format that a newer release filled: this one must not write beside it."""
    if number > KNOWN_FORMATS[-1]:
        raise ConfigurationError(str(unknown_format(number)))
