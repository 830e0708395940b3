"""Where arrays live: batches split over devices, parameters on all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


@dataclass(frozen=True)
class Placement:
    """A row of devices; None leaves everything where JAX puts it."""

    mesh: Mesh | None

    @property
    def devices(self) -> int:
        """Number of devices."""
        return 1 if self.mesh is None else self.mesh.size

    def put(self, tree: PyTree, axis: int | None = None) -> PyTree:
        """Send the arrays of a tree to all devices: whole, or split along one axis."""
        if self.mesh is None:
            return tree
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, self._sharding(axis)), rest)

    def constrain(self, tree: PyTree, axis: int | None = None) -> PyTree:
        """Keep traced arrays whole on all devices, or split along one axis."""
        if self.mesh is None:
            return tree
        where = self._sharding(axis)
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, where), tree)

    def _sharding(self, axis: int | None) -> NamedSharding:
        assert self.mesh is not None
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "batch")
        return NamedSharding(self.mesh, spec)


HERE = Placement(None)


def place(devices: Sequence[Any] | None) -> Placement:
    """Choose devices: those given, or all of this process.

    Raises:
        ValueError: an empty list.
    """
    if devices is not None and not len(devices):
        raise ValueError("devices is an empty list; leave it out for all local devices.")
    if devices is None:
        devices = jax.local_devices()
        if len(devices) == 1:
            return HERE
    return Placement(Mesh(list(devices), ("batch",)))
