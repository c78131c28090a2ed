"""Two server processes behind a balancer are replaced one after the other, while devices write and read."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx2
import pytest

from example_project.postgres import free_port
from tests.balancer import Balancer, balanced
from tests.conftest import SOAK
from tests.e2e.devices import Device, Devices, wait_until_equal
from tests.e2e.project import ENVIRONMENT, Person, RunningProject
from tests.e2e.test_shared_lists import own_project, put_todo
from tests.processes import Process, asgi_process, wait_until

ROUNDS = 5 if SOAK else 1
PAUSE_S = 0.05
DEVICES = 3


class Pool:
    """Server processes of one project, each at an address of its own that a later one takes over."""

    def __init__(self, project: RunningProject, ports: list[int], cleanup: ExitStack) -> None:
        self._project, self._cleanup, self.ports = project, cleanup, ports
        self._processes = {port: self._start(port) for port in ports}

    def replace(self, port: int) -> float:
        """End a process by SIGTERM and start another; return the seconds that the first took to end."""
        began = time.monotonic()
        self._processes[port].stop()
        took_s = time.monotonic() - began
        self._processes[port] = self._start(port)
        ready = f"http://127.0.0.1:{port}/localsync/probes/readiness"
        wait_until(lambda: httpx2.get(ready).status_code == 200, "the new process is ready")
        return took_s

    @property
    def logs(self) -> str:
        """What the processes that run now have printed."""
        return "".join(process.log for process in self._processes.values())

    def _start(self, port: int) -> Process:
        return self._cleanup.enter_context(asgi_process(self._project.url, port=port, environment=ENVIRONMENT))


@contextmanager
def writing(device: Device, list_id: str, written: list[str]) -> Iterator[None]:
    """A device that writes all the time; afterwards `written` holds the titles."""
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(PAUSE_S):
            title = f"{id(device)} {len(written)}"
            device.write(put_todo(list_id, title))
            written.append(title)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def shared(server_url: str, migrated_database: str) -> Iterator[RunningProject]:
    with own_project(server_url, migrated_database) as project:
        yield project


def connect_all(project: RunningProject, devices: Devices, balancer: Balancer) -> list[tuple[Person, Device, str]]:
    """Users with a device each who share a list, online through the balancer; and the list."""
    people = [project.add_person(f"user{number}") for number in range(DEVICES)]
    list_id = project.add_list("Shared", *people)
    found = [(person, devices.new(person.name), list_id) for person in people]
    for person, device, _ in found:
        device.connect(f"http://127.0.0.1:{balancer.port}/localsync", person.token())
        device.wait_for_first_sync()
    return found


def test_a_rolling_restart_loses_nothing(shared: RunningProject, devices: Devices) -> None:
    written: list[list[str]] = [[] for _ in range(DEVICES)]
    with ExitStack() as cleanup:
        pool = Pool(shared, [free_port(), free_port()], cleanup)
        balancer = cleanup.enter_context(balanced(pool.ports))
        online = connect_all(shared, devices, balancer)
        with ExitStack() as writers:
            for (_, device, list_id), titles in zip(online, written, strict=True):
                writers.enter_context(writing(device, list_id, titles))
            for _ in range(ROUNDS):
                for port in pool.ports:
                    assert pool.replace(port) < 3
                    shared.add_todo(online[0][2], "In Postgres")
        for person, device, _ in online:
            wait_until_equal(device, lambda person=person: shared.expected(person), what=person.name)

        stored = Counter(title for (title,) in shared.rows("SELECT title FROM todos"))
        assert stored == Counter([title for titles in written for title in titles] + ["In Postgres"] * 2 * ROUNDS)
        assert min(map(len, written)) > 10
        assert all(balancer.taken[port] > DEVICES for port in pool.ports), balancer.taken
        assert "Traceback" not in pool.logs
