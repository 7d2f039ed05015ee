"""The flow definitions of the demo, read from `definitions/*.json`.

The files leave out what is empty, write a condition as its bare expression, and give a step that exists many
times once with `repeat`; `run_after` a repeated step means after all of it.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from cascade_state import Condition, FlowDefinition, JsonObject, StepDefinition

__all__ = ["condition_holds", "load_definitions", "resolved_inputs"]


def load_definitions() -> dict[str, FlowDefinition]:
    """Returns all definitions by flow id, not deployed yet."""
    folder = files("cascade_state.demo") / "definitions"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".json"))
    found = [_definition(json.loads((folder / name).read_text("utf-8"))) for name in names]
    return {definition.flow_id: definition for definition in found}


def condition_holds(condition: Condition | None, outputs: JsonObject) -> bool:
    """Returns whether a step's condition, `[not] <step id>.<output>`, is true; a step without one always runs.

    Args:
        outputs: The outputs of each completed step.
    """
    if condition is None:
        return True
    wanted = not condition.expression.startswith("not ")
    step_id, _, name = condition.expression.removeprefix("not ").partition(".")
    return bool(outputs.get(step_id, {}).get(name)) is wanted


def resolved_inputs(step: StepDefinition, trigger_data: JsonObject, outputs: JsonObject) -> dict[str, Any]:
    """Returns a step's inputs: `$trigger.<name>` and `$<step id>.<output>` give way to values, the rest is literal."""
    sources = {"trigger": trigger_data, **outputs}
    return {name: _resolved(value, sources) for name, value in step.input_mapping.items()}


def _resolved(value: Any, sources: JsonObject) -> Any:
    if not (isinstance(value, str) and value.startswith("$")):
        return value
    source, _, name = value[1:].partition(".")
    return sources.get(source, {}).get(name)


def _definition(content: dict[str, Any]) -> FlowDefinition:
    repeated = {
        step["step_id"]: [f"{step['step_id']}-{number:03}" for number in range(1, step["repeat"] + 1)]
        for step in content["steps"]
        if "repeat" in step
    }
    steps = tuple(
        _step(step, step_id, repeated)
        for step in content.pop("steps")
        for step_id in repeated.get(step["step_id"], [step["step_id"]])
    )
    return FlowDefinition(**content, steps=steps)


def _step(content: dict[str, Any], step_id: str, repeated: dict[str, list[str]]) -> StepDefinition:
    condition = content.get("condition")
    return StepDefinition(
        step_id=step_id,
        component_type=content["component_type"],
        input_mapping=content.get("input_mapping", {}),
        config=content.get("config", {}),
        run_after=tuple(step for name in content.get("run_after", ()) for step in repeated.get(name, [name])),
        condition=None if condition is None else Condition(expression=condition, language="demo"),
    )
