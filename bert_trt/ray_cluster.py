"""Runs shards on Ray: starts it on this machine or joins a cluster, chooses the actors, and hands shards to them.

Which actor runs what, and what happens when one is lost, is Ray Data's business.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bert_trt import interrupts
from bert_trt.console import UserError
from bert_trt.shards import Shard

REQUIREMENTS = "requirements-cluster.txt"
OBJECT_STORE_BYTES = 2**27  # on this machine; what is kept there are the shards' places
CPUS_OF_ACTOR = 4  # where there is no GPU, unless --actors says otherwise
CONNECT_SECONDS = 10.0
TASKS_IN_FLIGHT = 2  # of an actor: the next one waits in its queue
MOST_TASKS = 1024  # each costs the driver some 16 KiB; of a large corpus a task has several shards


def import_ray() -> Any:
    """Imports Ray and Ray Data, with reports of usage off.

    Raises:
        UserError: they are not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of what Ray's C++ code prints to the terminal
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise UserError(
            f"corpus.py needs Ray Data, which cannot be imported ({error}): pip install -r {REQUIREMENTS}; or take "
            "predict.py, which runs in one process"
        ) from error
    return ray


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Starts Ray on this machine, or joins a cluster; yields the module ``ray``.

    Args:
        address: HOST:PORT of a cluster's head; None for this machine alone.

    Raises:
        UserError: there is no cluster at the address, or it cannot be joined.
    """
    ray = import_ray()
    try:
        if address is None:
            _start(ray)
        else:
            _join(ray, address)
        yield ray
    finally:
        with interrupts.uninterrupted():
            ray.shutdown()


def _start(ray: Any) -> None:
    # Ray's ports are open to the network, and only who knows the token is heard. Without this one Ray would write one
    # to the home folder.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cpus = len(os.sched_getaffinity(0))
    ray.init(
        address="local",
        num_cpus=cpus if cpus != os.cpu_count() else None,  # Ray knows what a container may use
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _join(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--address {address}: expected HOST:PORT, as `ray start --head` prints it")
    remedy = f"start one with `ray start --head`, and on this machine `ray start --address={address}`"
    try:  # Ray itself would try for minutes
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: nothing answers there ({error}); {remedy}") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, SystemExit, ray.exceptions.AuthenticationError) as error:
        raise UserError(f"--address {address}: cannot join the cluster ({error}); {remedy}") from error


# --- actors ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Actors:
    """The actors of a run.

    Attributes:
        count: how many.
        cpus: of each.
        gpus: of each, 0 or 1.
    """

    count: int
    cpus: int
    gpus: int


def choose_actors(machines: Sequence[Mapping[str, float]], count: int | None) -> Actors:
    """An actor for each GPU; without a GPU, actors that share the CPUs.

    Args:
        machines: ``CPU`` and ``GPU`` of each machine of the cluster.
        count: the number of actors; None for the default.

    Raises:
        UserError: there is no room for so many.
    """
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    wanted = count or sum(gpus) or max(1, sum(cpus) // CPUS_OF_ACTOR)

    def room(share: int) -> int:
        places = [own // share for own in cpus]
        return sum(map(min, places, gpus) if any(gpus) else places)

    for share in range(max(cpus, default=0), 0, -1):
        if room(share) >= wanted:
            return Actors(wanted, share, 1 if any(gpus) else 0)
    of_each = "a GPU and a CPU each" if any(gpus) else "a CPU each"
    raise UserError(
        f"--actors {wanted}: there is room for {room(1)} ({of_each}; {sum(gpus)} GPUs, {sum(cpus)} CPUs); name fewer"
    )


def machines_of(ray: Any) -> list[Mapping[str, float]]:
    """The resources of each machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def run_shards(ray: Any, shards: Sequence[Shard], actor: type, job: Any, actors: Actors) -> Iterator[Shard]:
    """Has actors answer shards; yields each when its task is done. The tasks of a lost actor are done again.

    Args:
        ray: the module.
        shards: at least one.
        actor: a class that is made with ``job`` and called as ``ShardPredictor`` is.
        job: pickled for every actor.
        actors: how many, and what each of them gets.

    Raises:
        UserError: an actor returned it.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    tasks = min(len(shards), MOST_TASKS)
    done = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=tasks).map_batches(
        actor,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors.count, max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            error = row.pop("error")
            if error is not None:
                raise UserError(error)
            yield Shard(**row)
