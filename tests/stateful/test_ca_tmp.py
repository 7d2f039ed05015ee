from collections import Counter
from hypothesis import settings, Phase
from hypothesis.stateful import run_state_machine_as_test
from tests.stateful.test_side_by_side import *
C=Counter()
class Dbg(MemoryBesidePostgres):
    def both(self, operation, *, outside=False):
        try: return super().both(operation, outside=outside)
        except AssertionError as e:
            m=str(e).split("\n")[0][:400]
            C[m]+=1
            raise
def test_count(server, template):
    Dbg.server, Dbg.template = server, template
    for i in range(10):
        try: run_state_machine_as_test(Dbg, settings=settings(SETTINGS, max_examples=40, phases=[Phase.generate], database=None, report_multiple_bugs=False))
        except BaseException as e: print("FAILED", i, str(e)[:200])
    for k,v in C.most_common(): print(v,k)
