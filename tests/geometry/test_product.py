"""Product families and the right projection onto them."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from klprojax.geometry import (
    ExponentialFamily,
    ProductFamily,
    i_projection,
    kl_divergence,
    log_normalize,
    right_projection,
)

from .._derivatives import check_derivatives

INF = np.inf
SHAPE = (2, 3, 2)
tables = hnp.arrays(np.float64, SHAPE, elements=st.one_of(st.just(-INF), st.floats(-5, 5)))
BLOCKS = [None, ((0, 2), (1,)), ((2,), (1, 0)), ((0, 1, 2),)]


def einsum_product(probs, blocks):
    letters = "abc"
    blocks = ((0,), (1,), (2,)) if blocks is None else [sorted(block) for block in blocks]
    names = ["".join(letters[axis] for axis in block) for block in blocks]
    marginals = [np.einsum(f"abc->{name}", probs) for name in names]
    return np.einsum(f"{','.join(names)}->abc", *marginals)


@functools.cache
def divergences(blocks):
    """Compiled: the projection, itself projected, and divergences from it and from others."""
    family = ProductFamily(blocks)

    def program(log_q, factors):
        result = right_projection(family, log_q, throw=False)
        members = jax.vmap(lambda f: family.join([log_normalize(factor) for factor in f]))(factors)
        distances, rest = (
            jax.vmap(lambda member, start=start: kl_divergence(start, member))(members)
            for start in (log_q, result.value)
        )
        nearest = kl_divergence(log_q, result.value)
        again = right_projection(family, result.value, throw=False).value
        return result, again, nearest, distances, rest

    return family, jax.jit(program)


@pytest.mark.parametrize("blocks", BLOCKS)
@given(table=tables, seed=st.integers(0, 2**32 - 1))
def test_projection_is_feasible_nearest_and_pythagorean(blocks, table, seed):
    table[0, 0, 0] = 0.0
    family, program = divergences(blocks)
    log_q = log_normalize(jnp.asarray(table))
    rng = np.random.default_rng(seed)
    factors = [
        jnp.asarray(rng.normal(size=(5, *factor.shape))) for factor in family.marginals(log_q)
    ]
    result, again, nearest, distances, rest = program(log_q, factors)
    assert bool(result.converged)
    # Products of up to three sums of up to six terms.
    np.testing.assert_allclose(
        np.exp(result.value), einsum_product(np.exp(log_q), blocks), rtol=1e-12, atol=1e-15
    )
    assert (distances >= nearest - 1e-12).all()  # rounding of terms up to 20
    np.testing.assert_allclose(distances, nearest + rest, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.exp(again), np.exp(result.value), rtol=1e-12)  # as above


def test_the_unscaled_table_projects_like_the_normalised_one():
    table = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
    a, b = (ProductFamily().right_projection(t).value for t in (table, table + 50.0))
    np.testing.assert_allclose(jnp.exp(a), jnp.exp(b), rtol=1e-12)  # eps at 50, three factors


def test_factors_join_to_the_projection():
    table = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE))
    family = ProductFamily(((2,), (1, 0)))
    factors = family.marginals(table)
    assert [factor.shape for factor in factors] == [(2,), (2, 3)]
    assert family.join(factors).tolist() == right_projection(family, table).value.tolist()


def test_factored_output_never_builds_the_joint():
    # A rank-one table of 2**20 entries: factored output holds nothing larger than the input.
    shape = (2,) * 20
    jaxpr = jax.make_jaxpr(ProductFamily().marginals)(jnp.zeros(shape))
    assert [var.aval.size for var in jaxpr.jaxpr.outvars] == [2] * 20


def test_product_family_is_the_exponential_family_of_indicators():
    table = np.random.default_rng(2).normal(size=(2, 3))
    table[0, 1] = -INF
    table = jnp.asarray(table)
    rows = np.broadcast_to(np.eye(2)[:, None, :], (2, 3, 2))
    columns = np.broadcast_to(np.eye(3)[None, :, :], (2, 3, 3))
    statistic = jnp.asarray(np.concatenate([rows, columns], axis=-1))
    matched = right_projection(ExponentialFamily(statistic), table, tolerance=1e-13).value
    product = right_projection(ProductFamily(), table).value
    # Moments matched to 1e-13 in total variation.
    np.testing.assert_allclose(jnp.exp(matched), jnp.exp(product), atol=1e-12)


def test_a_table_without_mass():
    empty = jnp.full((2, 2), -jnp.inf)
    result = right_projection(ProductFamily(), empty, throw=False)
    assert not result.converged
    assert bool(jnp.isneginf(result.value).all())
    with pytest.raises(eqx.EquinoxRuntimeError, match="no mass"):
        right_projection(ProductFamily(), empty)


@pytest.mark.parametrize("blocks", BLOCKS[:2])
def test_derivatives(blocks):
    table = jnp.asarray(np.random.default_rng(3).normal(size=SHAPE)).at[:, 1].set(-jnp.inf)

    def probs(table):
        return jnp.exp(ProductFamily(blocks).right_projection(table).value)

    # Central differences with step 1e-5: rounding over the step, 1e-11 times the size.
    check_derivatives(probs, (table,), tolerance=1e-8)


def test_jit_vmap_and_float32():
    tables = jnp.asarray(np.random.default_rng(4).normal(size=(4, *SHAPE)))
    family = ProductFamily()
    want = jnp.stack([family.right_projection(table).value for table in tables])
    got = jax.jit(jax.vmap(family.right_projection))(tables)
    np.testing.assert_allclose(got.value, want, rtol=1e-13)  # reordered sums
    single = family.right_projection(tables[0].astype(jnp.float32)).value
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(jnp.exp(single), jnp.exp(want[0]), rtol=3e-6)  # float32 rounding


def test_misuse_is_refused():
    table = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match="Use the right projection"):
        i_projection(ProductFamily(), table)
    with pytest.raises(ValueError, match="exactly one block"):
        ProductFamily(((0,),)).right_projection(table)
    with pytest.raises(ValueError, match="disjoint"):
        ProductFamily(((0,), (0, 1)))
    with pytest.raises(ValueError, match="one factor for each block"):
        ProductFamily(((0, 1), (2,))).join([jnp.zeros(2), jnp.zeros((2, 2))])


def test_no_blocks_is_the_product_of_nothing():
    assert float(ProductFamily().join(())) == 0.0
