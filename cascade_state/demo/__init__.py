"""A small engine on the store, and a run that shows what the store promises: `python -m cascade_state.demo`.

It is a model of how to build on `cascade_state`, so it imports its public face and nothing below. `engine` is
the part to read first; `components` are what steps do, `changes` what becomes of a flow by it; `worker` claims
work and hands it to the engine. The rest is the show: `scenario` plans what happens and what must come of it,
`world` plays everybody outside (customers, carriers, reviewers), `run` starts the server, kills a worker and
starts another, and `invariants` compares plan and outcome.
"""
