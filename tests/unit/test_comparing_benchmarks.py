from typing import Any

from benchmarks.comparing import compare


def _document(**ratios: list[float]) -> dict[str, Any]:
    """Results with these ratios of rounds to a floor whose rate is always 100."""
    results = []
    for name, rounds in ratios.items():
        middle = sorted(rounds)[len(rounds) // 2]
        contenders = {
            "store": {"per_second_of_rounds": [100 * ratio for ratio in rounds]},
            "bare asyncpg": {"per_second_of_rounds": [100.0] * len(rounds)},
        }
        results.append(
            {"group": "g", "name": name, "tasks": 1, "ratios": {"bare asyncpg": middle}, "contenders": contenders}
        )
    return {"results": results}


def test_what_got_slower_by_more_than_the_rounds_scatter_is_told() -> None:
    before = _document(get=[0.8] * 5, put=[0.8] * 5, advance=[0.5] * 5)
    after = _document(get=[0.6] * 5, put=[0.78] * 5, advance=[0.7] * 5)
    text, slower = compare(before, after)
    assert slower
    assert "| get, 1 task, × bare asyncpg | 0.80 | 0.60 | SLOWER by 25% |" in text
    assert "| advance, 1 task, × bare asyncpg | 0.50 | 0.70 | faster by 40% |" in text
    assert "put" not in text


def test_rounds_that_scatter_say_less() -> None:
    steady = _document(get=[1.0] * 8)
    assert compare(steady, _document(get=[0.82] * 8))[1]
    assert not compare(steady, _document(get=[0.62, 0.7, 0.76, 0.8, 0.82, 0.9, 1.0, 1.1]))[1]
    assert compare(steady, _document(get=[0.1, 0.2, 0.3, 0.4, 0.4, 0.5, 0.6, 0.9]))[1]  # but not for everything


def test_what_is_new_or_gone_is_told() -> None:
    text, slower = compare(_document(get=[1.0] * 3), _document(put=[1.0] * 3))
    assert not slower
    assert "| put, 1 task | – | – | new |" in text
    assert "| get, 1 task | – | – | gone |" in text


def test_nothing_changed() -> None:
    same = _document(get=[1.0] * 3)
    assert compare(same, same) == ("Nothing changed by more than the rounds scatter.", False)


def _grown(**factors: float) -> dict[str, Any]:
    sizes = {"1000": {"p50_ms": 1.0}, "100000": {"p50_ms": 1.0}}
    return {"results": [], "growth": [{"name": name, "sizes": sizes, "factor": one} for name, one in factors.items()]}


def test_what_grows_more_than_before_is_told() -> None:
    text, slower = compare(_grown(get=1.0, put=1.0, page=2.0), _grown(get=1.5, put=1.2, page=1.0))
    assert slower
    assert "| growth: get | 1.00 | 1.50 | GROWS MORE by 50% |" in text
    assert "| growth: page | 2.00 | 1.00 | grows less by 50% |" in text
    assert "put" not in text


def test_growth_that_is_new_gone_or_of_other_sizes_is_told_and_is_no_fault() -> None:
    after = _grown(get=3.0, page=1.0)
    after["growth"][0]["sizes"] = {"1000": {}, "10000000": {}}
    text, slower = compare(_grown(get=1.0, put=1.0), after)
    assert not slower
    assert "| growth: get | 1,000 to 100,000 | 1,000 to 10,000,000 | other sizes, not compared |" in text
    assert "| growth: put | – | – | gone |" in text
    assert "| growth: page | – | – | new |" in text
