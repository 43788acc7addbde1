"""The clock of what is measured: it stands still while the process does."""

import asyncio

import pytest

from serve_app.awake import AwakeClock


def test_time_asleep_is_not_counted_and_time_awake_is() -> None:
    now = 100.0
    awake = AwakeClock(lambda: now)
    began = awake()
    for step in (1.0, 2.0, 600.0, 1.0):
        now += step
        awake()
    assert awake() - began == pytest.approx(4.0)


async def test_it_is_read_every_second_while_it_runs() -> None:
    awake = AwakeClock(asyncio.get_running_loop().time)
    awake.start()
    began = awake()
    await asyncio.sleep(3.3)
    assert awake() - began == pytest.approx(3.3, abs=0.5)
    awake.stop()
