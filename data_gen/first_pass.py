"""Goes over a data set before it is converted, for what its class table is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from maxdl_tf.errors import UserError
from maxdl_tf.processes import results_in_order
from maxdl_tf.progress import Progress


def gather(
    function: Callable[[Any], Any], tasks: Sequence[Any], processes: int, what: str, skip_bad_input: bool
) -> Iterator[Any]:
    """Yields `function(task)` of each task, in order, showing progress on stderr.

    Args:
      function: Called in any process, so it must pickle; raises UserError about bad input.
      tasks: What it is called with.
      processes: How many.
      what: For the progress.
      skip_bad_input: Leave it out; the conversion, which comes after, tells what is wrong with it.

    Raises:
      UserError: About bad input that is not to be skipped, or if all is bad.
    """
    faults: list[UserError] = []
    attempt = functools.partial(_try, function)
    with results_in_order(attempt, tasks, processes) as results, Progress(what, total=len(tasks)) as progress:
        for result in results:
            progress.advance()
            if not isinstance(result, UserError):
                yield result
            elif skip_bad_input:
                faults.append(result)
            else:
                raise result
    if faults and len(faults) == len(tasks):
        raise UserError(f"all {len(tasks)} label maps are bad; the first: {faults[0]}")


def _try(function: Callable[[Any], Any], task: Any) -> Any:
    try:
        return function(task)
    except UserError as error:
        return error
