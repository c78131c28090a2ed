"""Who is told of an announcement, and who is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from django_localsync.buckets.announcement import CHANNEL, Announcement, BucketTotals, encode_announcement
from django_localsync.storage.notifications import REMEMBERED_ANNOUNCEMENTS, Interests, Notifications

NO_INTERESTS = Interests(frozenset(), frozenset(), frozenset(), write_checkpoint=0)
TOTALS = BucketTotals(1, 2, 3)


class Ear:
    """A listener that remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def announce_totals(self, op_id: int, totals: Mapping[int, BucketTotals]) -> None:
        self.heard.append((op_id, dict(totals)))

    def announce_outdated(self) -> None:
        self.heard.append("outdated")


def interests(buckets: set[int] = frozenset(), **others: Any) -> Interests:  # type: ignore[assignment]
    digests = {name: frozenset(others.get(name, ())) for name in ("created", "lookups")}
    return Interests(frozenset(buckets), **digests, write_checkpoint=others.get("write_checkpoint", 0))


def announcement(op_id: int = 9, **about: Any) -> Announcement:
    return Announcement(run="r", sequence=op_id, op_id=op_id, **about)


def listen(notifications: Notifications, about: Interests, since: int | None = None) -> Ear:
    ear = Ear()
    notifications.subscribe(ear, about, notifications.mark() if since is None else since)
    return ear


def test_only_those_concerned_are_told():
    notifications = Notifications("default")
    of_bucket = listen(notifications, interests({1}))
    of_other = listen(notifications, interests({2}))

    notifications.publish(announcement(buckets={1: TOTALS}))

    assert of_bucket.heard == [(9, {1: TOTALS})]
    assert of_other.heard == []


def test_all_totals_of_a_checkpoint_are_told_at_once():
    notifications = Notifications("default")
    mark = notifications.mark()
    of_both = listen(notifications, interests({1, 2}))
    of_one = listen(notifications, interests({2, 3}))

    notifications.publish(announcement(buckets={1: TOTALS, 2: TOTALS}))

    assert of_both.heard == [(9, {1: TOTALS, 2: TOTALS})]
    assert of_one.heard == [(9, {2: TOTALS})]
    assert listen(notifications, interests({1, 2}), since=mark).heard == [(9, {1: TOTALS, 2: TOTALS})]


def test_what_is_more_than_totals_is_told_as_outdated_and_once():
    notifications = Notifications("default")
    ears = [
        listen(notifications, interests({1}, lookups={5})),
        listen(notifications, interests({1}, created={6})),
        listen(notifications, interests({1}, write_checkpoint=7)),
    ]

    about = {"lookups": frozenset({5}), "created": frozenset({6}), "write_checkpoints": frozenset({7})}
    notifications.publish(announcement(buckets={1: TOTALS}, **about))

    assert [ear.heard for ear in ears] == [["outdated"]] * 3


def test_everyone_is_told_when_everything_or_the_rules_changed():
    notifications = Notifications("default")
    ear = listen(notifications, NO_INTERESTS)

    notifications.publish(announcement(everything=True))
    notifications.publish(announcement(rules=True))

    assert ear.heard == ["outdated", "outdated"]


def test_what_was_announced_between_the_read_and_the_subscription_is_told():
    notifications = Notifications("default")
    notifications.publish(announcement(8, buckets={1: TOTALS}))
    mark = notifications.mark()
    notifications.publish(announcement(9, buckets={1: TOTALS, 2: TOTALS}))

    ear = listen(notifications, interests({1}), since=mark)

    assert ear.heard == [(9, {1: TOTALS})]


def test_too_long_between_the_read_and_the_subscription_means_another_read():
    notifications = Notifications("default")
    mark = notifications.mark()
    for _ in range(REMEMBERED_ANNOUNCEMENTS + 1):
        notifications.publish(announcement())

    assert listen(notifications, NO_INTERESTS, since=mark).heard == ["outdated"]


def test_changed_interests_replace_the_old_ones_and_leaving_ends_them():
    notifications = Notifications("default")
    ear = listen(notifications, interests({1}))
    notifications.subscribe(ear, interests({2}), notifications.mark())

    notifications.publish(announcement(buckets={1: TOTALS}))
    notifications.unsubscribe(ear)
    notifications.publish(announcement(buckets={2: TOTALS}))

    assert ear.heard == []


def test_a_gap_in_the_announcements_means_that_everything_may_have_changed():
    notifications = Notifications("default")
    ear = listen(notifications, NO_INTERESTS)
    for run, sequence in [("a", 1), ("a", 2), ("a", 4), ("b", 1), ("b", 2)]:
        before = len(ear.heard)
        notifications._receive(
            psycopg.Notify(CHANNEL, encode_announcement(Announcement(run=run, sequence=sequence, op_id=1)), 1)
        )
        ear.heard.append((run, sequence, len(ear.heard) > before))

    assert [item for item in ear.heard if item != "outdated"] == [
        ("a", 1, False),
        ("a", 2, False),
        ("a", 4, True),
        ("b", 1, True),
        ("b", 2, False),
    ]


def test_a_foreign_notification_is_ignored():
    notifications = Notifications("default")
    ear = listen(notifications, NO_INTERESTS)

    notifications._receive(psycopg.Notify(CHANNEL, "hello", 1))

    assert ear.heard == []


NUMBERS = st.frozensets(st.integers(0, 3))


@given(
    interested=st.builds(Interests, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 3)),
    published=st.builds(
        Announcement,
        run=st.just("r"),
        sequence=st.just(1),
        op_id=st.just(1),
        buckets=st.dictionaries(st.integers(0, 3), st.just(TOTALS)),
        created=NUMBERS,
        lookups=NUMBERS,
        write_checkpoints=NUMBERS,
        everything=st.booleans(),
        rules=st.booleans(),
    ),
)
def test_being_told_at_once_or_later_is_the_same(interested: Interests, published: Announcement):
    notifications = Notifications("default")
    mark = notifications.mark()
    live = listen(notifications, interested)

    notifications.publish(published)
    late = listen(notifications, interested, since=mark)

    assert live.heard == late.heard
