"""Run one function over many items: in this process, on local workers, or on a Dask cluster.

>>> from stainbridge.execution import open_executor
>>> def area(picture, state):
...     model = state.keep("model", "doubling", lambda: (lambda side: side * 2))
...     return model(picture)
>>> with open_executor() as executor:
...     rows = {outcome.item: outcome.value for outcome in executor.run(area, [2, 3])}
>>> rows
{2: 4, 3: 6}
"""

from .contract import Executor, Outcome, SchedulerLost, SchedulerUnreachable, WorkerState
from .opening import open_executor

__all__ = ["Executor", "Outcome", "SchedulerLost", "SchedulerUnreachable", "WorkerState", "open_executor"]
