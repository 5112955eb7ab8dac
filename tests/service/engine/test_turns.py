"""The queue in which callers take turns, beside a model of it that is plain and slow."""

from hypothesis import given
from hypothesis import strategies as st

from service.engine.turns import Turns


def test_callers_take_turns() -> None:
    turns: Turns[int] = Turns()
    assert not turns
    for item, caller in enumerate("aaabbc"):
        turns.append(item, caller)
    assert len(turns) == 3
    assert sorted(turns.items_in_order()) == [0, 1, 2, 3, 4, 5]
    assert [turns.popleft() for _ in range(6)] == [0, 3, 5, 1, 4, 2]
    assert not turns


def test_a_wanted_item_is_taken_from_the_front_of_the_callers_only() -> None:
    turns: Turns[int] = Turns()
    for item in range(100):
        turns.append(item, "a")
    assert turns.popleft_where(lambda item: item == 99) is None
    assert turns.popleft_where(lambda item: item == 63) == 63
    assert turns.first() == 0


@given(st.lists(st.sampled_from(["a", "b", "c", "pop", "even", "skip", "remove"]), max_size=60))
def test_turns_do_what_a_list_of_lists_does(steps: list[str]) -> None:
    turns: Turns[int] = Turns()
    model: list[tuple[str, list[int]]] = []
    for number, step in enumerate(steps):
        if step in "abc":
            turns.append(number, step)
            for caller, items in model:
                if caller == step:
                    items.append(number)
                    break
            else:
                model.append((step, [number]))
        elif step == "remove":
            turns.remove(number // 2, "b")
            for _, items in model:
                if number // 2 in items and steps[number // 2] == "b":
                    items.remove(number // 2)
            model = [(caller, items) for caller, items in model if items]
        elif step == "even":
            chosen = next((one for one in model if any(item % 2 == 0 for item in one[1])), None)
            got = turns.popleft_where(lambda item: item % 2 == 0)
            if chosen is None:
                assert got is None
                continue
            model.remove(chosen)
            assert got == next(item for item in chosen[1] if item % 2 == 0)
            chosen[1].remove(got)
            if chosen[1]:
                model.append(chosen)
        elif model:
            assert turns.first() == model[0][1][0]
            caller, items = model.pop(0)
            if step == "pop":
                assert turns.popleft() == items.pop(0)
            else:
                turns.skip()
            if items:
                model.append((caller, items))
        assert bool(turns) == bool(model)
        assert len(turns) == len(model)
        assert sorted(turns.items_in_order()) == sorted(
            item for _, items in model for item in items
        )
