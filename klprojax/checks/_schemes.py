"""The schemes that iterate projections, on planes of real vectors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._adjoint import ImplicitAdjoint
from ..projections import (
    ADMM,
    Cyclic,
    DifferenceMap,
    DouglasRachford,
    Gaussians,
    iterate,
)
from ._measure import as_given, at_least, by_precision, relative_difference
from ._registry import statement

_STEPS = 5


@statement("One operator, schemes", "iterate on two planes vs projection matrices in numpy")
def one_operator_schemes(seed: int = 0, size: int = 5, dtype: Any = None) -> Any:
    """Check Cyclic, Douglas-Rachford, the difference map and ADMM, and where Cyclic comes to rest.

    Two planes meet in one point, whose derivative in their offsets is a linear solve.

    Source: section 2, projections; each scheme's reference. `size` is the dimension.
    """
    at_least(size, 3)
    rng = np.random.default_rng(seed)
    dims = size // 2, size - size // 2
    # Rows of an orthogonal matrix, turned a little: the planes meet well.
    turned = np.linalg.qr(rng.normal(size=(size, size)))[0] + 0.1 * rng.normal(size=(size, size))
    planes = [as_given(part, dtype) for part in np.split(turned, [dims[0]])]
    offsets = [as_given(rng.normal(size=d), dtype) for d in dims]
    start = as_given(rng.normal(size=size), dtype)

    def onto(k: int) -> Any:
        inverse = np.linalg.pinv(planes[k])
        return lambda x: x - inverse @ (planes[k] @ x - offsets[k])

    def ours(offsets: Any) -> Any:
        def plane(k: int) -> Any:
            matrix = jnp.asarray(planes[k], dtype)
            inverse = jnp.asarray(np.linalg.pinv(planes[k]), dtype)
            return lambda x: x - inverse @ (matrix @ x - offsets[k])

        return plane(0), plane(1)

    p, q = onto(0), onto(1)
    given = [jnp.asarray(offset, dtype) for offset in offsets]
    gaps = []
    for scheme in (
        Cyclic(),
        DouglasRachford(0.4),
        DifferenceMap(0.7),
        DifferenceMap(1.0),
        ADMM(),
    ):
        x, z, u = start, start, np.zeros(size)
        for _ in range(_STEPS):
            if isinstance(scheme, Cyclic):
                x = q(p(x))
            elif isinstance(scheme, DouglasRachford):
                mirrored = 2 * p(x) - x
                x = 0.6 * x + 0.4 * (2 * q(mirrored) - mirrored)
            elif isinstance(scheme, DifferenceMap):
                beta = scheme.beta
                to_p = p(q(x) + (q(x) - x) / beta)
                x = x + beta * (to_p - q(p(x) - (p(x) - x) / beta))
            else:
                x = p(z - u)
                z = q(x + u)
                u = u + x - z
        found = iterate(
            scheme,
            ours(given),
            jnp.asarray(start, dtype),
            space=Gaussians(),
            max_steps=_STEPS,
            tolerance=0,
        )
        gaps.append(relative_difference(found.value, z if isinstance(scheme, ADMM) else x))

    meeting = np.linalg.inv(np.concatenate(planes))
    settled = iterate(Cyclic(), ours(given), jnp.asarray(start, dtype), space=Gaussians())
    rest = float(jnp.finfo(settled.value.dtype).eps) ** (2 / 3)
    x, steps, change = start, 0, np.inf
    while change > rest:
        new = q(p(x))
        change = np.abs(new - x).max() / np.abs(new).max()
        x, steps = new, steps + 1
    # A step more or less where rounding decides.
    gaps.append(float(abs(int(settled.steps) - steps) > 1))

    def limit(offsets: Any) -> Any:
        solution = iterate(
            Cyclic(),
            ours(offsets),
            jnp.asarray(start, dtype),
            space=Gaussians(),
            adjoint=ImplicitAdjoint(),
        )
        return solution.value

    slopes = jnp.concatenate(jax.jacobian(limit)(given), axis=1)
    gaps.append(relative_difference(slopes, meeting) / 10)
    # Five steps of products of matrices; the slope's solve is right to ten times that.
    return float(np.max(gaps)), by_precision(dtype, 1e-9, 1e-4)
