"""The demo's definition files, and what its components answer."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cascade_state import Condition, FlowInstance, FlowStatus, JsonObject, StepDefinition, open_store
from cascade_state.demo.components import Call, Component, Done, PermanentFailure, TemporaryFailure
from cascade_state.demo.definition_files import condition_holds, load_definitions, resolved_inputs
from cascade_state.demo.effects import ListedEffects
from cascade_state.demo.scenario import Moment, Scenario
from cascade_state.testing.clock import FrozenClock
from tests.unit.demo_runs import instant_components, new_worker


def call(component_type: str, *, inputs: JsonObject | None = None, pretend: JsonObject | None = None) -> Call:
    definition = load_definitions()["order"].deployed(1, FrozenClock().now())
    step = StepDefinition(step_id="step", component_type=component_type)
    flow = FlowInstance.create(definition, business_key="order-1", trigger_data={"pretend": {"step": pretend or {}}})
    return Call(flow=flow, step=step, inputs=inputs or {})


def test_every_file_is_a_valid_definition() -> None:
    definitions = load_definitions()

    assert set(definitions) == {"approval", "import", "order", "review"}
    for definition in definitions.values():
        definition.validate()
        types = {step.component_type for step in definition.steps}
        assert types <= set(instant_components())


def test_a_repeated_step_is_written_out_and_run_after_means_all_of_it() -> None:
    steps = {step.step_id: step for step in load_definitions()["import"].steps}

    chunks = [step_id for step_id in steps if step_id.startswith("chunk-")]
    assert len(chunks) == 240
    assert chunks[0] == "chunk-001"
    assert steps["verify"].run_after == tuple(chunks)
    assert all(steps[chunk].run_after == ("open-file",) for chunk in chunks)


@pytest.mark.parametrize(
    ("expression", "outputs", "holds"),
    [
        ("a.good", {"a": {"good": True}}, True),
        ("a.good", {"a": {"good": False}}, False),
        ("a.good", {}, False),
        ("not a.good", {"a": {"good": True}}, False),
        ("not a.good", {"a": {}}, True),
    ],
)
def test_a_condition_asks_for_an_output(expression: str, outputs: JsonObject, holds: bool) -> None:
    assert condition_holds(Condition(expression=expression), outputs) is holds


def test_inputs_come_from_the_trigger_from_outputs_or_from_the_file() -> None:
    mapping = {"a": "$trigger.x", "b": "$earlier.y", "c": "literal", "d": 4, "e": "$trigger.missing"}
    step = StepDefinition(step_id="step", component_type="service", input_mapping=mapping)

    inputs = resolved_inputs(step, {"x": 1}, {"earlier": {"y": 2}})

    assert inputs == {"a": 1, "b": 2, "c": "literal", "d": 4, "e": None}


async def test_a_service_answers_refuses_or_is_down_as_the_scenario_pretends() -> None:
    service = instant_components()["service"]

    assert await service.run(call("service")) == Done(outputs={"receipt": "step/order-1"})
    with pytest.raises(PermanentFailure, match="blocked"):
        await service.run(call("service", pretend={"refuses": "blocked"}))
    with pytest.raises(TemporaryFailure, match="step is down"):
        await service.run(call("service", pretend={"down_for_attempts": 1}))


async def test_who_did_not_answer_did_not_approve() -> None:
    majority = instant_components()["majority"]
    answers: dict[str, JsonObject] = {"ada": {"approved": True}, "ben": {"arrived": False}, "cleo": {"approved": True}}

    outcome = await majority.run(call("majority", inputs={"answers": answers}))
    assert outcome == Done(outputs={"approved": True, "approvals": 2})
    answers["cleo"] = {"approved": False}
    outcome = await majority.run(call("majority", inputs={"answers": answers}))
    assert outcome == Done(outputs={"approved": False, "approvals": 1})


async def test_missing_rows_fail_an_import_for_good() -> None:
    with pytest.raises(PermanentFailure, match="0 rows of 50"):
        await instant_components()["verify"].run(call("verify", inputs={"rows": 50}))


async def test_an_answer_takes_its_latency() -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    service = type(instant_components()["service"])(timedelta(seconds=0.5), pause)
    await service.run(call("service"))
    await service.run(call("service", pretend={"takes_seconds": 3.0}))

    assert pauses == [0.5, 3.0]


@pytest.mark.parametrize("step_id", ["parcel-delivered", "pick-up"])
@pytest.mark.parametrize("deadline_passes", [False, True])
async def test_a_delivery_or_deadline_that_is_refused_for_good_fails_the_flow(
    step_id: str, deadline_passes: bool
) -> None:
    clock = FrozenClock()
    async with open_store("memory://", clock=clock) as store:
        order = await store.flow_definitions.deploy(load_definitions()["order"])
        pretend = {step_id: {"refuses": "nobody can read it"}}
        data = {"amount": 1, "pick_up_seconds": 60, "pretend": pretend}
        flow = await store.flow_instances.add(FlowInstance.create(order, business_key="order-1", trigger_data=data))
        await store.correlations.publish("carrier/order-1", {})
        worker = new_worker(store, ListedEffects(), instant_components())
        await worker.run_until_idle()
        if deadline_passes:
            clock.advance(timedelta(minutes=2))
        else:
            await store.correlations.publish("pick-up/order-1", {})
        await worker.run_until_idle()

        failed = await store.flow_instances.get(flow.flow_instance_id)

    assert failed.status is FlowStatus.FAILED
    assert failed.failed_steps == {step_id}
    assert failed.error == {"step_id": step_id, "reason": "nobody can read it"}


async def test_a_component_that_waits_for_nothing_refuses_a_delivery() -> None:
    component: Component = instant_components()["service"]
    with pytest.raises(PermanentFailure, match="service does not wait for events"):
        await component.on_delivery(call("service"), None)  # type: ignore[arg-type]


def test_a_scenario_is_the_same_for_the_same_seed_and_has_every_story() -> None:
    scenario = Scenario.make(flow_count=12, seed=4)

    assert scenario == Scenario.make(flow_count=12, seed=4)
    assert scenario != Scenario.make(flow_count=12, seed=5)
    larger = Scenario.make(flow_count=240, seed=4)
    assert len(larger.flows) == 240
    assert {flow.story for flow in scenario.flows} <= {flow.story for flow in larger.flows}
    assert {event.moment for flow in larger.all_flows() for event in flow.events} == set(Moment)
