from collections import Counter
from hypothesis import settings, HealthCheck
from hypothesis.stateful import run_state_machine_as_test
from tests.stateful.test_side_by_side import *
import cascade_state.testing.contracts.rule_machine as rm
C=Counter()
import inspect
class Counted(MemoryBesidePostgres):
    def both(self, operation, *, outside=False):
        r=super().both(operation, outside=outside)
        name=inspect.stack()[1].function
        if name not in("_compare_all",):
            kind="error" if r is None else ("empty" if r[0] in (None,[],0,False) else "ok")
            C[name,kind]+=1
        return r
def test_count(server, template):
    Counted.server, Counted.template = server, template
    try:
        run_state_machine_as_test(Counted, settings=settings(SETTINGS, max_examples=40))
    finally:
        for k,v in sorted(C.items()): print(k,v)
