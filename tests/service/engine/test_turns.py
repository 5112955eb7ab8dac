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


@given(st.lists(st.sampled_from(["a", "b", "c", "pop", "skip", "remove"]), max_size=60))
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
