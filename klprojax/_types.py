"""Shared shape aliases: the two kinds of pytree that every operator takes and returns.

``VariableTables``: one array per distinct cardinality ``c`` (ascending), ``[variables of that
cardinality, c]``. ``FactorTables``: one array per factor group, ``[factors, *states]``, or
``[*states]`` when the whole group shares one table.
Both are plain tuples, their arrays of different sizes, so ``jax.tree.map`` and every
transformation see only arrays.
"""

from typing import TypeAlias

from jaxtyping import Array, Float

VariableTables: TypeAlias = tuple[Float[Array, "_ _"], ...]
FactorTables: TypeAlias = tuple[Float[Array, "..."], ...]
Scalar: TypeAlias = Float[Array, ""]
