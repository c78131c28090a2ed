"""What a process that serves streams sets for all of it."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest

from django_localsync.streams import YOUNG_OBJECTS, get_stream_server


@pytest.mark.parametrize(
    ("chosen", "kept"), [(700, YOUNG_OBJECTS), (YOUNG_OBJECTS + 1, YOUNG_OBJECTS + 1), (0, 0)], ids=str
)
def test_garbage_is_collected_less_often_unless_the_project_has_chosen_so(chosen: int, kept: int):
    async def serve() -> tuple[int, ...]:
        get_stream_server()
        return gc.get_threshold()

    before = gc.get_threshold()
    gc.set_threshold(chosen, 11, 12)
    try:
        with ThreadPoolExecutor(1) as thread:  # signals are the main thread's
            assert thread.submit(asyncio.run, serve()).result() == (kept, 11, 12)
    finally:
        gc.set_threshold(*before)
