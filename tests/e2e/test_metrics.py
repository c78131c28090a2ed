"""What Prometheus scrapes of a real server, while devices sync and write, and the replicator comes and goes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.databases import temporary_database
from tests.e2e.devices import Devices, wait_until_equal
from tests.e2e.project import RunningProject, running_project
from tests.e2e.wire import http
from tests.processes import ROOT, project_environment, wait_until

SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.e2e.settings_with_metrics"}
FRESH_WITHIN_S = 30.0


@pytest.fixture
def project(server_url: str, migrated_database: str) -> Iterator[RunningProject]:
    with (
        temporary_database(server_url, template=migrated_database) as url,
        running_project(url, environment=SETTINGS) as running,
    ):
        yield running


def scrape(project: RunningProject) -> dict[str, float]:
    """Samples by name, with the values of their labels."""
    answer = http.get(f"{project.endpoint}/metrics", headers={"Authorization": "Bearer of the scraper"})
    assert answer.status_code == 200, answer.text
    return {
        " ".join([sample.name.removeprefix("localsync_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_the_numbers_move(project: RunningProject, devices: Devices) -> None:
    first = scrape(project)
    assert (first["streams"], first["operations_synced_total"], first["bytes_synced_total"]) == (0, 0, 0)
    assert (first["storage_up"], first["replicator_up"]) == (1, 1)

    alice = project.add_person("alice")
    list_id = project.add_list("Shared", alice)
    todo = project.add_todo(list_id, "Old words")
    project.rows("UPDATE todos SET title = 'New words' WHERE id = %(id)s", id=todo)
    device = devices.new("alice")
    device.connect(project.endpoint, alice.token())
    insert = "INSERT INTO todos (id, list_id, title, done) VALUES (uuid(), ?, ?, 0)"
    device.write((insert, [list_id, "Written offline"]))
    device.write((insert, ["00000000-0000-4000-8000-000000000000", "In no list"]))
    wait_until_equal(device, lambda: project.expected(alice), what="the device")

    then = scrape(project)
    assert then["streams"] == 1
    assert then["streams_opened_total"] >= 1
    assert then["operations_synced_total"] >= 4
    assert then["bytes_synced_total"] > 500
    assert (then["upload_operations_total applied"], then["upload_operations_total rejected"]) == (1, 1)
    device.disconnect()
    wait_until(lambda: scrape(project)["streams"] == 0, "the stream is gone")


def test_storage_says_what_compaction_saved_and_how_far_replication_is(project: RunningProject) -> None:
    list_id = project.add_list("Shared", project.add_person("alice"))
    todo = project.add_todo(list_id, "Old words")
    project.rows("UPDATE todos SET title = 'New words' WHERE id = %(id)s", id=todo)
    stored = "SELECT 1 FROM localsync_bucket_operation WHERE data LIKE '%%New words%%'"
    wait_until(lambda: project.rows(stored), "it is replicated")

    command = [sys.executable, "manage.py", "localsync_compact"]
    environment = os.environ | project_environment(project.url, SETTINGS)
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    wait_until(lambda: scrape(project)["compaction_erased_bytes_total"] > 0, "savings are told", FRESH_WITHIN_S)
    found = scrape(project)
    assert found["compaction_erased_operations_total"] >= 1
    assert found["storage_bytes bucket_operation"] > 8192
    assert found["replication_lag_seconds default"] < 3600

    assert project.replicator.stop() == 0
    project.add_todo(list_id, "Nobody replicates it")
    wait_until(lambda: scrape(project)["replicator_up"] == 0, "the missing replicator shows", FRESH_WITHIN_S)
    assert scrape(project)["replication_lag_bytes default"] > 0


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}])
def test_nobody_else_may_read_them(client, settings, headers) -> None:
    for absent in ({}, {"METRICS_TOKEN": ""}):  # an empty variable of the environment opens nothing
        settings.LOCALSYNC = absent
        assert client.get("/localsync/metrics", headers=headers).status_code == 404

    settings.LOCALSYNC = {"METRICS_TOKEN": "of the scraper"}

    refused = client.get("/localsync/metrics", headers=headers)
    assert refused.status_code == 401
    assert b"localsync_" not in refused.content


def test_without_the_extra_the_way_out_is_named(client, settings, monkeypatch) -> None:
    settings.LOCALSYNC = {"METRICS_TOKEN": "of the scraper"}
    monkeypatch.delitem(sys.modules, "django_localsync.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    answer = client.get("/localsync/metrics", headers={"Authorization": "Bearer of the scraper"})

    assert answer.status_code == 501
    assert "[metrics]" in answer.json()["error"]["description"]
