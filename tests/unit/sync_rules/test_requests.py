"""From a request to its buckets."""

from __future__ import annotations

from typing import Any

from django_localsync.sync_rules import compile_rules
from django_localsync.sync_rules.compiled import CompiledPlan
from django_localsync.sync_rules.plan import RequestParameters, Resolution, StreamError, Subscription
from tests.unit.sync_rules.rules import Index, evaluate


def plan_of(**streams: Any) -> CompiledPlan:
    return compile_rules({"config": {"edition": 3}, "streams": streams}).plan


def request(user: str = "u1", *subscriptions: Subscription, **claims: Any) -> RequestParameters:
    return RequestParameters({"sub": user} | claims, {}, subscriptions)


def names(plan: CompiledPlan, resolution: Resolution) -> list[str]:
    return [plan.bucket_sources[item.source].name + item.parameters for item in resolution.buckets]


def text(**values: Any) -> dict[str, dict[str, Any]]:
    return {name: {"null": True} if value is None else {"text": value} for name, value in values.items()}


def test_lookups_are_asked_in_stages_and_together():
    plan = plan_of(
        comments={
            "auto_subscribe": True,
            "query": "SELECT * FROM comments WHERE issue IN (SELECT id FROM issues WHERE project IN "
            "(SELECT project FROM members WHERE user_id = auth.user_id()))",
        },
        projects={
            "auto_subscribe": True,
            "query": "SELECT * FROM projects WHERE id IN (SELECT project FROM members WHERE user_id = auth.user_id())",
        },
    )
    index = Index(plan)
    index.add("members", text(user_id="u1", project="p1"))
    index.add("issues", text(id="i1", project="p1"))

    resolution = index.resolve(request())

    assert [len(stage) for stage in index.stages] == [1, 1]
    assert names(plan, resolution) == ['comments|0["i1"]', 'projects|0["p1"]']
    assert resolution.lookups == {key for stage in index.stages for key in stage}


def test_two_values_of_one_row_stay_together():
    plan = plan_of(
        cells={
            "auto_subscribe": True,
            "query": "SELECT cells.* FROM cells JOIN grants ON cells.x = grants.x AND cells.y = grants.y "
            "WHERE grants.user_id = auth.user_id()",
        }
    )
    index = Index(plan)
    index.add("grants", text(user_id="u1", x="1", y="a"))
    index.add("grants", text(user_id="u1", x="2", y="b"))

    assert names(plan, index.resolve(request())) == ['cells|0["1","a"]', 'cells|0["2","b"]']


def test_a_failing_subscription_leaves_the_others_alone():
    plan = plan_of(
        many={
            "accept_potentially_dangerous_queries": True,
            "query": "SELECT * FROM posts WHERE category IN subscription.parameter('cats')",
        }
    )
    bad, good = Subscription("many", {"cats": "no json"}), Subscription("many", {"cats": ["a"]})

    resolution = Index(plan).resolve(request("u1", bad, good))

    assert names(plan, resolution) == ['many|0["a"]']
    assert resolution.streams[0].errors == (StreamError(0, "a value is not JSON"),)


def test_a_hostile_subscription_is_an_error_not_a_burden():
    plan = plan_of(
        grid={
            "accept_potentially_dangerous_queries": True,
            "query": "SELECT * FROM cells WHERE x IN subscription.parameter('a') AND y IN subscription.parameter('b') "
            "AND z IN subscription.parameter('c')",
        }
    )
    many = [str(number) for number in range(1000)]

    resolution = Index(plan).resolve(request("u1", Subscription("grid", {"a": many, "b": many, "c": many})))

    assert resolution.buckets == ()
    assert "combinations" in resolution.streams[0].errors[0].message


def test_parameters_that_are_no_proper_text_are_an_error():
    plan = plan_of(
        one={
            "accept_potentially_dangerous_queries": True,
            "query": "SELECT * FROM t WHERE a = subscription.parameter('a')",
        }
    )
    resolution = Index(plan).resolve(request("u1", Subscription("one", {"a": "\ud800"})))
    assert resolution.buckets == ()
    assert len(resolution.streams[0].errors) == 1


def test_streams_that_nobody_asked_for_are_not_given():
    plan = plan_of(quiet={"query": "SELECT * FROM t"}, loud={"auto_subscribe": True, "query": "SELECT * FROM u"})
    resolution = Index(plan).resolve(request("u1", Subscription("absent", {})))
    assert [stream.name for stream in resolution.streams] == ["loud"]
    assert names(plan, resolution) == ["loud|0[]"]


def test_an_impossible_priority_of_a_client_is_ignored():
    plan = plan_of(s={"priority": 2, "query": "SELECT * FROM t"})
    resolution = Index(plan).resolve(request("u1", Subscription("s", {}, 77)))
    assert [bucket.priority for bucket in resolution.buckets] == [2]


def test_a_subquery_without_key_reads_the_whole_table():
    plan = plan_of(
        perks={
            "auto_subscribe": True,
            "query": "SELECT * FROM perks WHERE kind IN (SELECT kind FROM settings WHERE open = 'yes')",
        }
    )
    index = Index(plan)
    index.add("settings", text(kind="a", open="yes"))
    index.add("settings", text(kind="b", open="no"))
    assert names(plan, index.resolve(request())) == ['perks|0["a"]']


def test_null_matches_nothing():
    plan = plan_of(s={"auto_subscribe": True, "query": "SELECT * FROM t WHERE a = auth.parameter('absent')"})
    index = Index(plan)
    assert index.resolve(request()).buckets == ()
    assert index.stages == []


def test_old_definitions_are_given_even_without_defaults():
    plan = compile_rules({"bucket_definitions": {"all": {"data": ["SELECT * FROM t"]}}}).plan
    resolution = Index(plan).resolve(RequestParameters({"sub": "u1"}, include_defaults=False))
    assert names(plan, resolution) == ["all[]"]


def test_arrays_of_the_request_can_be_joined():
    plan = plan_of(
        s={
            "auto_subscribe": True,
            "query": "SELECT t.* FROM t JOIN json_each(auth.parameter('ids')) AS i ON t.a = i.value "
            "WHERE i.value != 'x' AND i.key < 2",
        }
    )
    resolution = Index(plan).resolve(request("u1", ids=["x", "a", "b"]))
    assert names(plan, resolution) == ['s|0["a"]']


def test_arrays_that_overlap_share_a_bucket():
    plan = plan_of(s={"auto_subscribe": True, "query": "SELECT * FROM t WHERE t.tags && auth.parameter('tags')"})
    buckets, _, _ = evaluate(plan, "t", {"id": {"text": "1"}, "tags": {"text": '["a","b"]'}})
    assert [bucket.parameters for bucket in buckets] == ['["a"]', '["b"]']
    assert names(plan, Index(plan).resolve(request("u1", tags=["b", "c"]))) == ['s|0["b"]', 's|0["c"]']


def test_an_expression_of_the_request_alone_is_a_condition():
    plan = plan_of(
        s={
            "auto_subscribe": True,
            "with": {"me": "SELECT auth.user_id() AS id WHERE auth.parameter('role') IN ('admin', 'owner')"},
            "query": "SELECT * FROM t WHERE owner IN me",
        }
    )
    index = Index(plan)
    assert names(plan, index.resolve(request("u1", role="owner"))) == ['s|0["u1"]']
    assert names(plan, index.resolve(request("u1", role="guest"))) == []
