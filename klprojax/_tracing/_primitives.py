"""The table of primitives: what is known of each by its name."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ._interpret import open_call

# Elementwise: the Jacobian in each argument is diagonal, given equal shapes.
ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp complex conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp
    exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le lgamma log
    log1p logistic lt max min mul ne neg nextafter not or polygamma pow quantise real
    reduce_precision regularized_incomplete_beta rem round rsqrt select_n sign sin sinh sqrt square
    stop_gradient sub tan tanh xor zeta""".split()  # noqa: SIM905
)
# Layout: every output entry is an entry of an argument of floats, or zero; which one it is follows
# from shapes and arguments of integers.
LAYOUT = frozenset(
    """broadcast_in_dim concatenate copy copy_p dynamic_slice dynamic_update_slice expand_dims
    gather pad reshape rev scatter slice split squeeze stack tile transpose unstack""".split()  # noqa: SIM905
)
# Every output entry is a sum of entries of the one argument.
SUMS = frozenset({"cumsum", "reduce_sum", "reduce_window_sum"})
# Every output entry is one entry of the one argument, found by comparing.
EXTREMA = frozenset({"reduce_max", "reduce_min"})
# Bilinear: every entry of the Jacobian in one argument is an entry of the other, or zero.
BILINEAR = frozenset({"dot_general", "conv_general_dilated"})
# Callbacks run arbitrary Python: nothing is known about their slope.
CALLBACKS = frozenset({"pure_callback", "io_callback", "debug_callback", "ffi_call"})
# Elementwise primitives that NumPy evaluates too, under a name of its own where one is given:
# nothing to compile for each new shape.
_NUMPY_NAMES = """abs add add_any=add cos div=divide exp expm1 log log1p max=maximum min=minimum
    mul=multiply neg=negative sin sqrt square sub=subtract tanh"""
NUMPY: dict[str, Callable[..., Any]] = {
    name: getattr(np, other or name)
    for name, _, other in (word.partition("=") for word in _NUMPY_NAMES.split())
}


def is_elementwise(eqn: Any, rules: tuple[str, ...]) -> bool:
    """Say whether each output entry depends on one entry of every argument.

    Args:
        eqn: the equation.
        rules: which functions with derivative rules count as what they compute, as for `open_call`.
            A rule need not be elementwise although the function is.
    """
    if eqn.primitive.name in ELEMENTWISE:
        return True
    inner = open_call(eqn, rules)
    if inner is None or len(eqn.outvars) != 1:
        return False
    shape = eqn.outvars[0].aval.shape

    def fits(one: Any) -> bool:
        if any(v.aval.shape not in (shape, ()) for v in (*one.invars, *one.outvars)):
            return False
        # A scalar that is spread is no obstacle.
        spread = one.primitive.name == "broadcast_in_dim" and one.invars[0].aval.shape == ()
        return spread or is_elementwise(one, rules)

    return all(map(fits, inner[0].eqns))
