"""Independent tasks, done by this process, by all cores or by a Ray cluster, with the same results."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, TypeVar

from vtune_jax.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
WorkEngine = Literal["local", "ray"]


def do_all(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, engine: WorkEngine = "local", workers: int = 1
) -> Iterator[tuple[int, Result]]:
    """Yields the number of a task and its result, in the order in which tasks are finished.

    Args:
        function: does a task. It must lie at the top of a module, where other processes can import it, and its result
            must not depend on the process.
        tasks: what it is called with.
        engine: `local`: processes of this machine; `ray`: Ray's workers, which must see the same files (`RAY_ADDRESS`
            names a running cluster).
        workers: number of processes; 1: this process does all tasks. Ray chooses its own number.

    Raises:
        UserError: raised by a task; tasks that have not begun are dropped.
    """
    if engine == "ray":
        yield from _by_ray(function, tasks)
    elif workers <= 1 or len(tasks) <= 1:
        for number, task in enumerate(tasks):
            yield number, function(task)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_one_core) as pool:
            try:
                futures = {pool.submit(function, task): number for number, task in enumerate(tasks)}
                for done in as_completed(futures):
                    yield futures[done], done.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process was killed, most likely for want of memory",
                    "free some memory and run the same command again; what is done is kept",
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _one_core() -> None:
    # There is a process for each core already: threads of the tokenizer would compete for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _by_ray(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray, which is not installed", "pip install 'vtune-jax[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)

    @ray.remote(num_cpus=1)
    def run(task: Task) -> Result:
        _one_core()
        return function(task)

    # At most 4 tasks per worker are submitted at a time: a million of them would fill the driver's memory.
    limit = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                number, task = waiting.pop()
                running[run.remote(task)] = number
            done, _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done[0]), _result_of(ray, done[0])
    finally:
        for reference in running:
            ray.cancel(reference, force=False)


def _result_of(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Ray wraps what a task raises; the user's mistake is inside.
        raise error.cause if isinstance(error.cause, UserError) else error from error
