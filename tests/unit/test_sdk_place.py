"""The path of a call is the same in every life, whatever finishes first."""

import asyncio
from collections.abc import Sequence

from aios.sdk import place


async def _life(delays: Sequence[float]) -> dict[str, str | None]:
    """A program that gathers scenes; *delays* are turns of the event loop before each calls."""
    place.number_tasks(asyncio.get_running_loop())
    paths: dict[str, str | None] = {}

    async def scene(name: str, turns: float) -> None:
        for _ in range(int(turns)):
            await asyncio.sleep(0)
        paths[f"{name} first"] = place.next_path()
        await asyncio.sleep(0)
        paths[f"{name} second"] = place.next_path()

    async def idle() -> None:
        await asyncio.sleep(0)

    with place.at(place.Place()):
        paths["plot"] = place.next_path()
        await asyncio.gather(scene("a", delays[0]), idle(), scene("b", delays[1]))
        await asyncio.gather(scene("c", 0))
        paths["end"] = place.next_path()
    return paths


async def test_gather_gives_the_same_paths_whoever_is_faster() -> None:
    expected = {
        "plot": "0",
        "a first": "1.scene.0/0",
        "a second": "1.scene.0/1",
        "b first": "1.scene.1/0",
        "b second": "1.scene.1/1",
        "c first": "1.scene.2/0",
        "c second": "1.scene.2/1",
        "end": "1",
    }
    assert await _life((0, 3)) == expected
    assert await _life((3, 0)) == expected


async def test_outside_of_a_program_there_is_no_path() -> None:
    with place.at(None):
        assert place.next_path() is None


async def test_numbering_twice_counts_once_and_keeps_a_factory_that_was_there() -> None:
    loop = asyncio.get_running_loop()
    made: list[str] = []

    def counting(loop, coroutine, **options):  # type: ignore[no-untyped-def]
        made.append(coroutine.__name__)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def work() -> str | None:
        return place.next_path()

    loop.set_task_factory(counting)
    place.number_tasks(loop)
    place.number_tasks(loop)
    with place.at(place.Place()):
        assert await loop.create_task(work()) == "0.work.0/0"
    assert made == ["work"]
    loop.set_task_factory(None)


async def test_a_thread_of_the_program_stays_in_its_place() -> None:
    with place.at(place.Place("t/")):
        assert await asyncio.to_thread(place.next_path) == "t/0"
        assert place.next_path() == "t/1"
