from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from tests.stateful.test_side_by_side import *
import cascade_state.testing.contracts.rule_machine as rm
class Dbg(MemoryBesidePostgres):
    def teardown(self):
        try: super().teardown()
        except AssertionError: raise
    def both(self, operation, *, outside=False):
        try: return super().both(operation, outside=outside)
        except AssertionError as e:
            print("ERR", str(e)[:2000])
            for f in self.flows:
                for s in self.stores if self.units is None or outside else self.units:
                    try: print(f, self._run(s.timers.list_for_instance(f)))
                    except Exception as x: print(x)
            raise
def test_count(server, template):
    Dbg.server, Dbg.template = server, template
    run_state_machine_as_test(Dbg, settings=settings(SETTINGS, max_examples=100, report_multiple_bugs=False))
