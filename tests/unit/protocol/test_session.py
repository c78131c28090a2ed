"""The server's stream session, as transcripts: what it is told, and what it sends and asks for."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_localsync.buckets.announcement import BucketTotals
from django_localsync.buckets.operation import OpId
from django_localsync.exceptions import ProtocolError
from django_localsync.protocol.lines import StreamInfo
from django_localsync.protocol.session import (
    Action,
    CheckpointOutdated,
    CheckpointRead,
    End,
    EndRequested,
    PageRead,
    PageRefused,
    ReadCheckpoint,
    ReadPage,
    SendLine,
    ServedBucket,
    ServedCheckpoint,
    StreamSession,
    TimePassed,
    TotalsAnnounced,
    Wait,
)

Buckets = dict[str, tuple[int, int]]
"""Bucket name → last op id, priority. Its id is the sum of its letters, each op has checksum 1."""


def session(expires_at: float = 1000, **positions: int) -> StreamSession:
    after = {name: OpId(position) for name, position in positions.items()}
    return StreamSession(after, now=0, expires_at=expires_at, keepalive_interval_s=20)


def bucket(name: str, last: int, priority: int = 3, reasons: tuple[tuple[str, int], ...] = ()) -> ServedBucket:
    return ServedBucket(id_of(name) if last else None, totals(last), priority, reasons)


def totals(last: int) -> BucketTotals:
    return BucketTotals(last, last, last)


def id_of(name: str) -> int:
    return sum(map(ord, name))


def read(
    op_id: int,
    buckets: Buckets,
    *,
    streams: tuple[StreamInfo, ...] = (),
    write_checkpoint: int | None = None,
    rule_set: int = 1,
) -> CheckpointRead:
    served = {name: bucket(name, *about) for name, about in buckets.items()}
    return CheckpointRead(ServedCheckpoint(rule_set, OpId(op_id), served, streams, write_checkpoint))


def page(operations: int, next_after: int, has_more: bool = False) -> PageRead:
    return PageRead(b'{"data":%d}\n' % next_after, operations, OpId(next_after), has_more)


def transcript(actions: list[Action]) -> list[Any]:
    """Lines as JSON without what repeats, other actions as they are."""
    return [shorten(orjson.loads(action.line)) if isinstance(action, SendLine) else action for action in actions]


def shorten(line: dict[str, Any]) -> Any:
    match line:
        case {"checkpoint": body}:
            return "checkpoint", body["last_op_id"], {item["bucket"]: item["checksum"] for item in body["buckets"]}
        case {"checkpoint_diff": body}:
            updated = {item["bucket"]: item["checksum"] for item in body["updated_buckets"]}
            return "diff", body["last_op_id"], updated, body["removed_buckets"]
        case {"checkpoint_complete": body}:
            return "complete", body["last_op_id"]
        case {"partial_checkpoint_complete": body}:
            return "partial", body["last_op_id"], body["priority"]
    return line


def read_page(name: str, after: int, through: int) -> ReadPage:
    return ReadPage(id_of(name), name, OpId(after), OpId(through))


def idle_session(op_id: int, buckets: Buckets, **served: Any) -> StreamSession:
    """One that has sent everything of a checkpoint."""
    made = session(**{name: last for name, (last, _) in buckets.items()})
    assert made.handle(read(op_id, buckets, **served), 0)[-1] == Wait()
    return made


def test_a_new_client_gets_a_checkpoint_its_operations_and_completion():
    stream = session()

    assert stream.start(0) == [ReadCheckpoint()]
    assert transcript(stream.handle(read(9, {"a": (5, 3), "b": (0, 3)}), 0)) == [
        ("checkpoint", "9", {"a": 5, "b": 0}),
        read_page("a", 0, 5),
    ]
    assert transcript(stream.handle(page(5, 5), 0)) == [{"data": 5}, ("complete", "9"), Wait()]


def test_a_known_position_is_where_reading_begins():
    stream = session(a=3, gone=8)

    actions = stream.handle(read(9, {"a": (5, 3)}), 0)

    assert actions[-1] == read_page("a", 3, 5)


def test_a_client_that_has_everything_is_told_so_at_once():
    stream = session(a=9)  # clients remember the checkpoint's op id, which may be above the bucket's own

    assert transcript(stream.handle(read(9, {"a": (5, 3)}), 0)) == [
        ("checkpoint", "9", {"a": 5}),
        ("complete", "9"),
        Wait(),
    ]


def test_clients_in_the_same_state_read_the_same_pages():
    far, near = session(a=9), session(a=5)
    for stream in (far, near):
        stream.handle(read(9, {"a": (5, 3)}), 0)

    news = TotalsAnnounced(OpId(12), {id_of("a"): totals(12)})

    assert far.handle(news, 0) == near.handle(news, 0)


def test_urgent_buckets_come_first_and_complete_on_their_own():
    stream = session()
    first = stream.handle(read(9, {"c": (1, 3), "b": (2, 1), "a": (3, 3), "d": (4, 0)}), 0)

    assert first[-1] == read_page("d", 0, 4)
    assert transcript(stream.handle(page(1, 4), 0))[1:] == [("partial", "9", 0), read_page("b", 0, 2)]
    assert transcript(stream.handle(page(1, 2), 0))[1:] == [("partial", "9", 1), read_page("a", 0, 3)]
    assert transcript(stream.handle(page(1, 3), 0))[1:] == [read_page("c", 0, 1)]
    assert transcript(stream.handle(page(1, 1), 0))[1:] == [("complete", "9"), Wait()]


def test_a_long_bucket_is_read_in_pages():
    stream = session()
    stream.handle(read(9, {"a": (9, 3)}), 0)

    assert stream.handle(page(4, 4, has_more=True), 0)[-1] == read_page("a", 4, 9)
    assert transcript(stream.handle(page(5, 9), 0))[1:] == [("complete", "9"), Wait()]


def test_new_totals_are_sent_as_a_diff_without_a_read():
    stream = idle_session(9, {"a": (5, 3), "b": (6, 3)})

    actions = stream.handle(TotalsAnnounced(OpId(11), {id_of("a"): totals(11), 999: totals(10)}), 0)

    assert transcript(actions) == [("diff", "11", {"a": 11}, []), read_page("a", 5, 11)]
    assert transcript(stream.handle(page(6, 11), 0)) == [{"data": 11}, ("complete", "11"), Wait()]


def test_totals_of_an_older_checkpoint_are_ignored():
    stream = idle_session(9, {"a": (5, 3)})

    assert stream.handle(TotalsAnnounced(OpId(9), {id_of("a"): totals(4)}), 0) == [Wait()]


def test_what_may_be_more_than_totals_is_read():
    stream = idle_session(9, {"a": (5, 3), "b": (6, 3)})

    assert stream.handle(CheckpointOutdated(), 0) == [ReadCheckpoint()]
    assert transcript(stream.handle(read(12, {"a": (5, 3), "c": (2, 3)}), 0)) == [
        ("diff", "12", {"c": 2}, ["b"]),
        read_page("c", 0, 2),
    ]


def test_a_read_that_finds_nothing_new_sends_nothing():
    stream = idle_session(9, {"a": (5, 3)})
    stream.handle(CheckpointOutdated(), 0)

    assert stream.handle(read(12, {"a": (5, 3)}), 0) == [Wait()]


def test_a_write_checkpoint_alone_gives_an_empty_diff():
    stream = idle_session(9, {"a": (5, 3)})
    stream.handle(CheckpointOutdated(), 0)

    actions = stream.handle(read(9, {"a": (5, 3)}, write_checkpoint=7), 0)

    assert transcript(actions) == [("diff", "9", {}, []), ("complete", "9"), Wait()]


def test_the_write_checkpoint_is_repeated_in_every_diff():
    stream = idle_session(9, {"a": (5, 3)}, write_checkpoint=7)

    (diff, _) = stream.handle(TotalsAnnounced(OpId(11), {id_of("a"): totals(11)}), 0)

    assert isinstance(diff, SendLine)
    assert orjson.loads(diff.line)["checkpoint_diff"]["write_checkpoint"] == "7"


def test_changed_streams_need_a_whole_checkpoint():
    stream = idle_session(9, {"a": (5, 3)})
    stream.handle(CheckpointOutdated(), 0)

    failed = StreamInfo("s", True, (("default", "cannot be evaluated"),))
    actions = stream.handle(read(10, {"a": (5, 3)}, streams=(failed,)), 0)

    assert transcript(actions) == [("checkpoint", "10", {"a": 5}), ("complete", "10"), Wait()]


def test_a_bucket_that_left_starts_from_nothing_when_it_returns():
    stream = idle_session(9, {"a": (5, 3)})
    for buckets in ({}, {"a": (5, 3)}):
        stream.handle(CheckpointOutdated(), 0)
        actions = stream.handle(read(9, buckets), 0)

    assert actions[-1] == read_page("a", 0, 5)


def test_news_interrupt_only_after_a_thousand_operations():
    stream = session()
    stream.handle(read(5000, {"a": (5000, 3)}), 0)
    stream.handle(page(999, 999, has_more=True), 0)
    before = stream.accepts_news
    stream.handle(page(1, 1000, has_more=True), 0)

    assert (before, stream.accepts_news) == (False, True)


def test_an_interrupted_round_goes_on_where_it_was_and_does_not_complete():
    stream = session()
    stream.handle(read(5000, {"a": (5000, 3), "b": (10, 3)}), 0)
    stream.handle(page(1000, 1000, has_more=True), 0)

    actions = stream.handle(TotalsAnnounced(OpId(5001), {id_of("a"): totals(5001)}), 0)

    assert transcript(actions) == [("diff", "5001", {"a": 5001}, []), read_page("a", 1000, 5001)]
    assert not stream.accepts_news
    assert stream.handle(page(500, 5001), 0)[-1] == read_page("b", 0, 10)
    assert transcript(stream.handle(page(10, 10), 0))[1:] == [("complete", "5001"), Wait()]


def test_an_interruption_for_nothing_goes_on():
    stream = session()
    stream.handle(read(5000, {"a": (5000, 3)}), 0)
    stream.handle(page(1000, 1000, has_more=True), 0)
    stream.handle(CheckpointOutdated(), 0)

    assert stream.handle(read(5000, {"a": (5000, 3)}), 0) == [read_page("a", 1000, 5000)]


def test_an_interruption_that_takes_the_bucket_stops_its_operations():
    stream = session()
    stream.handle(read(5000, {"a": (5000, 3)}), 0)
    stream.handle(page(1000, 1000, has_more=True), 0)
    stream.handle(CheckpointOutdated(), 0)

    actions = stream.handle(read(5001, {}), 0)

    assert transcript(actions) == [("diff", "5001", {}, ["a"]), ("complete", "5001"), Wait()]


def test_a_refused_page_means_another_checkpoint_in_place_of_this_one():
    stream = session()
    stream.handle(read(9, {"a": (9, 3), "b": (5, 3)}), 0)
    stream.handle(page(3, 3, has_more=True), 0)

    assert stream.handle(PageRefused(), 0) == [ReadCheckpoint()]
    actions = stream.handle(read(20, {"a": (20, 3), "b": (5, 3)}), 0)

    assert transcript(actions) == [("diff", "20", {"a": 20}, []), read_page("a", 3, 20)]


def test_a_bucket_that_was_rewritten_is_replaced_in_one_checkpoint():
    stream = idle_session(9, {"a": (9, 3)})
    stream.handle(TotalsAnnounced(OpId(10), {id_of("a"): totals(10)}), 0)  # of the rewritten one, by the old name

    stream.handle(PageRefused(), 0)
    rewritten = ServedBucket(id_of("a"), totals(10), 3, (), generation=1)
    actions = stream.handle(CheckpointRead(ServedCheckpoint(1, OpId(10), {"a.1": rewritten})), 0)

    read_whole = ReadPage(id_of("a"), "a.1", OpId(0), OpId(10), generation=1)
    assert transcript(actions) == [("diff", "10", {"a.1": 10}, ["a"]), read_whole]
    assert transcript(stream.handle(page(2, 10), 0))[1:] == [("complete", "10"), Wait()]


def test_a_position_beyond_history_makes_the_client_forget_the_bucket():
    stream = session(a=500, b=4)  # as after a restored backup

    actions = stream.handle(read(300, {"a": (200, 3), "b": (4, 3)}), 0)

    assert transcript(actions) == [
        ("checkpoint", "300", {"b": 4}),
        ("diff", "300", {"a": 200}, []),
        read_page("a", 0, 200),
    ]


@pytest.mark.parametrize("later", [read(8, {"a": (5, 3)}), read(12, {"a": (5, 3)}, rule_set=2)])
def test_a_history_that_cannot_continue_ends_the_stream(later: CheckpointRead):
    stream = idle_session(9, {"a": (5, 3)})
    stream.handle(CheckpointOutdated(), 0)

    assert stream.handle(later, 0) == [End()]


def test_the_time_to_expiry_is_told_regularly_once_before_the_end_and_at_the_end():
    stream = session(expires_at=50)
    stream.handle(read(9, {}), 0)

    told = []
    while True:
        now = stream.wake_at
        line, action = stream.handle(TimePassed(), now)
        assert isinstance(line, SendLine)
        told.append((now, orjson.loads(line.line)["token_expires_in"]))
        if action == End():
            break

    assert told == [(20, 30), (30, 20), (50, 0)]


def test_a_token_about_to_expire_at_connect_is_not_warned_of():
    assert session(expires_at=15).wake_at == 15


def test_an_expired_token_ends_the_stream_before_anything_is_read():
    stream = session(expires_at=0)

    assert transcript(stream.start(1)) == [{"token_expires_in": 0}, End()]


def test_a_keepalive_between_pages_repeats_the_request():
    stream = session()
    stream.handle(read(9, {"a": (9, 3)}), 0)

    assert transcript(stream.handle(TimePassed(), 20)) == [{"token_expires_in": 980}, read_page("a", 0, 9)]


def test_a_keepalive_before_a_read_repeats_it():
    stream = idle_session(9, {})
    stream.handle(CheckpointOutdated(), 0)

    assert stream.handle(TimePassed(), 20)[-1] == ReadCheckpoint()


def test_a_requested_end_ends_at_once():
    stream = session()
    stream.handle(read(9, {"a": (9, 3)}), 0)

    assert stream.handle(EndRequested(), 0) == [End()]


def test_an_event_that_cannot_occur_is_refused():
    with pytest.raises(ProtocolError, match="PageRead while waiting for a checkpoint"):
        session().handle(page(1, 1), 0)


class Device:
    """A client that checks every line: it knows each bucket's operations by their op ids."""

    def __init__(self, held: dict[str, int]) -> None:
        self.held = {name: list(range(1, after + 1)) for name, after in held.items()}
        self.announced: dict[str, int] = {}
        self.completed: dict[str, int] | None = None

    def receive(self, line: dict[str, Any]) -> None:
        match line:
            case {"checkpoint": body}:
                self.announced = {item["bucket"]: item["checksum"] for item in body["buckets"]}
                self.held = {name: held for name, held in self.held.items() if name in self.announced}
            case {"checkpoint_diff": body}:
                for name in body["removed_buckets"]:
                    del self.announced[name]
                    self.held.pop(name, None)
                self.announced |= {item["bucket"]: item["checksum"] for item in body["updated_buckets"]}
            case {"data": body}:
                held = self.held.setdefault(body["bucket"], [])
                assert body["bucket"] in self.announced  # I5
                held.extend(body["ops"])
                assert held == sorted(set(held))
                assert held[-1] <= self.announced[body["bucket"]]  # I2
            case {"checkpoint_complete": _}:
                assert {name: len(self.held.get(name, [])) for name in self.announced} == self.announced
                self.completed = dict(self.announced)


@given(data=st.data())
def test_whatever_happens_a_client_ends_with_what_storage_holds(data: st.DataObject):
    """Operations of a bucket are 1 … n with checksum 1, so its checksum is its count and its last op id."""
    names = ["a", "b", "c"]
    histories = {name: data.draw(st.integers(0, 4000), label=name) for name in names}
    granted = set(data.draw(st.sets(st.sampled_from(names))))
    held = {name: data.draw(st.integers(0, histories[name])) for name in data.draw(st.sets(st.sampled_from(names)))}
    device, stream = Device(held), session(**held)
    refusals = data.draw(st.lists(st.booleans(), max_size=6))

    def checkpoint() -> CheckpointRead:
        return read(max(histories.values()), {name: (histories[name], ord(name) % 2) for name in sorted(granted)})

    def grow() -> TotalsAnnounced:
        name = data.draw(st.sampled_from(names))
        histories[name] = max(histories.values()) + data.draw(st.integers(1, 1500))
        return TotalsAnnounced(OpId(histories[name]), {id_of(name): totals(histories[name])})

    def perform(actions: list[Action]) -> Any:
        for action in actions:
            match action:
                case SendLine(line):
                    device.receive(orjson.loads(line))
                case ReadCheckpoint():
                    return checkpoint()
                case ReadPage(_, name) if name in granted and refusals and refusals.pop():
                    histories[name] = max(histories.values()) + 1  # compacted beyond this checkpoint
                    return PageRefused()
                case ReadPage(_, name, after, through):
                    last = min(through, after + 1000)
                    body = orjson.dumps({"data": {"bucket": name, "ops": list(range(after + 1, last + 1))}})
                    return PageRead(body, last - after, OpId(last), last < through)
        return None

    news_left = data.draw(st.integers(0, 6))
    event = perform(stream.start(0))
    while event is not None or news_left:
        if stream.accepts_news and news_left and (event is None or data.draw(st.booleans())):
            news_left -= 1
            if data.draw(st.booleans()):
                changed = data.draw(st.sampled_from(names))
                granted ^= {changed}
                event = CheckpointOutdated()
            else:
                news = grow()
                known = {id_of(name) for name in granted if histories[name]}
                event = news if set(news.totals) <= known and known_to(device, news) else CheckpointOutdated()
        event = perform(stream.handle(event, 0))

    assert device.completed == {name: histories[name] for name in granted}


def known_to(device: Device, news: TotalsAnnounced) -> bool:
    """Whether the bucket existed when the stream last read; else its creation is announced, not its totals."""
    return all(any(id_of(name) == number and held for name, held in device.announced.items()) for number in news.totals)
