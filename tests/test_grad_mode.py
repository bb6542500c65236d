"""no_grad: a mode of each context, and a decorator for every kind of function."""

import asyncio
import threading

import pytest
from messages import error_line

import scratchnet as sn

pytestmark = pytest.mark.usefixtures("numpy_device")


def is_recorded():
    return (sn.Tensor([1.0], requires_grad=True) * 2).requires_grad


@pytest.mark.parametrize("decorate", [sn.no_grad(), sn.no_grad], ids=["brackets", "bare"])
def test_a_decorated_generator_records_nothing_and_leaves_its_callers_mode_alone(decorate):
    closed = []

    @decorate
    def values(n):
        """Doc."""
        got = []
        try:
            for i in range(n):
                try:
                    got.append((yield i, is_recorded()))
                except ValueError:
                    got.append(is_recorded())
        finally:
            closed.append(is_recorded())
        return got

    assert values.__name__ == "values" and values.__doc__ == "Doc."
    generator = values(3)
    assert next(generator) == (0, False) and is_recorded()
    assert generator.send("a") == (1, False) and is_recorded()
    assert generator.throw(ValueError) == (2, False) and is_recorded()
    with pytest.raises(StopIteration) as stop:
        generator.send("b")
    assert stop.value.value == ["a", False, "b"] and closed == [False] and is_recorded()
    generator = values(3)
    next(generator)
    generator.close()
    assert closed == [False, False] and is_recorded()
    generator = values(1)
    next(generator)
    with pytest.raises(KeyError):
        generator.throw(KeyError)
    assert is_recorded()


def test_coroutines_and_asynchronous_generators_record_nothing():
    events = []

    @sn.no_grad()
    async def coroutine():
        await asyncio.sleep(0)
        return is_recorded()

    @sn.no_grad()
    async def generator():
        try:
            for _ in range(2):
                await asyncio.sleep(0)
                try:
                    events.append((yield is_recorded()))
                except ValueError:
                    events.append(is_recorded())
        finally:
            events.append(is_recorded())

    async def other():
        return [is_recorded() for _ in range(3) if await asyncio.sleep(0) is None]

    async def main():
        results = await asyncio.gather(coroutine(), other(), coroutine())
        items = [(item, is_recorded()) async for item in generator()]
        half = generator()
        first = await half.__anext__()
        thrown = await half.athrow(ValueError)
        await half.aclose()
        return results, items, first, thrown, is_recorded()

    results, items, first, thrown, after = asyncio.run(main())
    assert results == [False, [True] * 3, False] and items == [(False, True)] * 2
    assert (first, thrown, after) == (False, False, True)
    assert events == [None, None, False, False, False]


def test_one_object_may_be_entered_again_also_inside_itself_and_by_several_threads():
    mode = sn.no_grad()
    for _ in range(2):
        with mode:
            with mode:
                assert not is_recorded()
            assert not is_recorded()
        assert is_recorded()
    entered, left = threading.Barrier(2), threading.Barrier(2)
    seen = []

    def enter():
        with mode:
            entered.wait(10)
            left.wait(10)
        seen.append(is_recorded())

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True, True]


def test_a_function_may_call_itself():
    @sn.no_grad()
    def depth(n):
        return [is_recorded(), *(depth(n - 1) if n else [])]

    assert depth(3) == [False] * 4 and is_recorded()


@pytest.mark.parametrize("thing", [type("Model", (), {}), 3, "name"])
def test_what_is_no_function_is_refused(thing):
    with pytest.raises(sn.ConfigError, match="expected a function to decorate") as error:
        sn.no_grad()(thing)
    error_line(error)
    assert is_recorded()
