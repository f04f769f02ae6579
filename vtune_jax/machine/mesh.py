"""Devices: the mesh that a batch is split over, and values placed on it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array, PyTree


def data_mesh(batch: int) -> Mesh | None:
    """All devices in a row, for data parallelism; None where there is one.

    Raises:
        ValueError: the batch does not divide by the number of devices.
    """
    devices = jax.devices()
    if len(devices) == 1:
        return None
    if batch % len(devices):
        raise ValueError(f"batch must be a multiple of the {len(devices)} devices, got {batch}.")
    return Mesh(np.array(devices), ("data",))


def everywhere(mesh: Mesh | None) -> Sharding:
    """Where values lie that every device of the mesh holds whole; the one device where there is no mesh."""
    return SingleDeviceSharding(jax.local_devices()[0]) if mesh is None else NamedSharding(mesh, PartitionSpec())


def template(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Shapes, dtypes and placement of what `replicate` gives, for arrays or their shapes; nothing is computed."""
    place = everywhere(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The same values on every device of the mesh, or on the one device.

    Placed explicitly even there: a jitted step compiles once for fresh arrays and once more for those that have been
    placed, by a checkpoint or by itself.
    """
    if mesh is None:
        return jax.device_put(tree, jax.local_devices()[0])
    everywhere = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)

    def on_all_hosts(leaf: Any) -> Array:
        # Each process has the value and gives it to its own devices; nothing is sent.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(on_all_hosts, tree)
