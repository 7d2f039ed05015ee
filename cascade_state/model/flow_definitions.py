"""Flow definitions: versioned, immutable descriptions of flows, and the rules that make one valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from typing import Any

from cascade_state.errors import InvalidArgument, InvalidDefinition
from cascade_state.model import documents
from cascade_state.model.arguments import check_key, check_text
from cascade_state.types import JsonObject

__all__ = ["Condition", "FlowDefinition", "StepDefinition", "Trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """What starts flows of a definition. The store keeps it; the engine gives it its meaning."""

    trigger_type: str
    config: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """An expression that decides whether a step runs. The store keeps it; the engine evaluates it."""

    expression: str
    language: str = "jmespath"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDefinition:
    """One named node of a definition; it may run once every step in `run_after` has completed."""

    step_id: str
    component_type: str
    input_mapping: JsonObject = field(default_factory=dict)
    config: JsonObject = field(default_factory=dict)
    run_after: tuple[str, ...] = ()
    condition: Condition | None = None

    def __post_init__(self) -> None:
        if isinstance(self.run_after, str):  # ("charge") for ("charge",): each letter would be a step
            raise InvalidArgument(argument="run_after", reason="must be step ids, not one str")
        if not isinstance(self.run_after, tuple):
            object.__setattr__(self, "run_after", tuple(self.run_after))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowDefinition:
    """A versioned, immutable description of a flow.

    `version` and `deployed_at` are None until the definition is deployed. `document` is an engine's own DSL,
    kept verbatim; `steps` may be empty only when it is not. Two definitions with the same content have the
    same `digest`.
    """

    flow_id: str
    name: str = ""
    description: str | None = None
    trigger: Trigger | None = None
    steps: tuple[StepDefinition, ...] = ()
    document: JsonObject = field(default_factory=dict)
    version: int | None = None
    deployed_at: datetime | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.steps, tuple):
            object.__setattr__(self, "steps", tuple(self.steps))

    @property
    def digest(self) -> str:
        """The SHA-256 (hex) of the canonical content: all but `version` and `deployed_at`, keys sorted."""
        return sha256(documents.dump_canonical(self.content(), "definition").encode()).hexdigest()

    def content(self) -> dict[str, Any]:
        """Returns the content as a JSON object: all but `version` and `deployed_at`."""
        return {
            "flow_id": self.flow_id,
            "name": self.name,
            "description": self.description,
            "trigger": None if self.trigger is None else _trigger_content(self.trigger),
            "steps": [_step_content(step) for step in self.steps],
            "document": self.document,
        }

    @classmethod
    def from_content(
        cls, content: JsonObject, *, version: int | None = None, deployed_at: datetime | None = None
    ) -> FlowDefinition:
        """Returns the definition that `content()` describes."""
        trigger = content.get("trigger")
        return cls(
            flow_id=content["flow_id"],
            name=content["name"],
            description=content["description"],
            trigger=None if trigger is None else Trigger(**trigger),
            steps=tuple(_step_from_content(step) for step in content["steps"]),
            document=content["document"],
            version=version,
            deployed_at=deployed_at,
        )

    def deployed(self, version: int, deployed_at: datetime) -> FlowDefinition:
        """Returns this definition as deployed under `version`."""
        return replace(self, version=version, deployed_at=deployed_at)

    def validate(self) -> None:
        """Checks that the definition makes sense.

        Raises:
            InvalidDefinition: Naming the step: a duplicate or empty step id, a `run_after` target that does
                not exist, a cycle (with its path); or an empty flow id, or neither steps nor document.
            InvalidArgument: A text or document cannot be stored.
        """
        if not self.flow_id:
            raise InvalidDefinition(flow_id=self.flow_id, reason="the flow id is empty")
        check_key(self.flow_id, "flow_id")
        check_text(self.name, "name")
        if self.description is not None:
            check_text(self.description, "description")
        if not self.steps and not self.document:
            raise InvalidDefinition(flow_id=self.flow_id, reason="has neither steps nor a document")
        self._validate_objects()
        self._validate_steps()
        self._validate_order()

    def _validate_objects(self) -> None:
        objects: dict[str, object] = {"$.document": self.document}
        if self.trigger is not None:
            objects["$.trigger.config"] = self.trigger.config
        for index, step in enumerate(self.steps):
            objects[f"$.steps[{index}].input_mapping"] = step.input_mapping
            objects[f"$.steps[{index}].config"] = step.config
        for path, value in objects.items():
            if not isinstance(value, Mapping):
                raise InvalidArgument(argument="definition", path=path, reason="must be a JSON object")

    def _validate_steps(self) -> None:
        seen: set[str] = set()
        for step in self.steps:
            if not step.step_id:
                raise self._fault(step.step_id, "the step id is empty")
            check_key(step.step_id, "step_id")
            if step.step_id in seen:
                raise self._fault(step.step_id, "the step id is used twice")
            if not step.component_type:
                raise self._fault(step.step_id, "the component type is empty")
            check_text(step.component_type, "component_type")
            seen.add(step.step_id)
        for step in self.steps:
            for target in step.run_after:
                if target not in seen:
                    raise self._fault(step.step_id, f"runs after {target!r}, which is no step of this flow")

    def _validate_order(self) -> None:
        try:
            TopologicalSorter({step.step_id: step.run_after for step in self.steps}).prepare()
        except CycleError as error:
            # graphlib lists a cycle so that each node is a predecessor of the next; its last node repeats the
            # first.
            cycle: list[str] = error.args[1]
            raise self._fault(cycle[0], f"is part of a cycle: {' -> '.join(cycle)}") from None

    def _fault(self, step_id: str, reason: str) -> InvalidDefinition:
        return InvalidDefinition(flow_id=self.flow_id, step_id=step_id, reason=reason)


def _trigger_content(trigger: Trigger) -> dict[str, Any]:
    return {"trigger_type": trigger.trigger_type, "config": trigger.config}


def _step_content(step: StepDefinition) -> dict[str, Any]:
    condition = step.condition
    return {
        "step_id": step.step_id,
        "component_type": step.component_type,
        "input_mapping": step.input_mapping,
        "config": step.config,
        "run_after": list(step.run_after),
        "condition": None
        if condition is None
        else {"expression": condition.expression, "language": condition.language},
    }


def _step_from_content(content: JsonObject) -> StepDefinition:
    condition = content["condition"]
    return StepDefinition(
        step_id=content["step_id"],
        component_type=content["component_type"],
        input_mapping=content["input_mapping"],
        config=content["config"],
        run_after=tuple(content["run_after"]),
        condition=None if condition is None else Condition(**condition),
    )
