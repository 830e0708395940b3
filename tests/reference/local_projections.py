"""Nearest points of a layer's constraints, in distances weighted by Gaussian precisions ω and ρ.

    loss:        argmin ω/2 |x' - x|² + cross-entropy(x', label)
    activation:  argmin ω_s/2 (s' - s)² + ω_b/2 (b' - b)² + ρ/2 (z' - z)²   with z' = σ(s' + b')
    dense unit:  argmin ω_a/2 |a' - a|² + ω_w/2 |w' - w|² + ρ/2 (u' - u)²   with u' = a'·w'

All work on arrays of any leading axes; the units' vectors lie along the last axis.

Reference: "Backpropagation from KL Projections", sections 2 and 5: left projections of Gaussians
onto the graphs of a network's functions. Fast code: `klprojax.training.local`.
"""

import numpy as np


def loss(x, labels, omega):
    """By gradient descent; the curvature is at most ω + 1/2 and at least ω."""
    new, target = x, np.eye(x.shape[-1])[labels]
    for _ in range(120):
        p = np.exp(new - new.max(-1, keepdims=True))
        slope = omega * (new - x) + p / p.sum(-1, keepdims=True) - target
        new = new - slope / (omega + 0.5)
    return new


def activation(s, b, z, omega_s, omega_b, rho, relu=True):
    """Exact: s + b moves as one number of precision ω; of relu's two branches the nearer one."""
    total, omega = s + b, 1 / (1 / omega_s + 1 / omega_b)
    new = (omega * total + rho * z) / (omega + rho)
    if relu:
        on, off = np.maximum(new, 0), np.minimum(total, 0)
        cost_on = omega * (on - total) ** 2 + rho * (on - z) ** 2
        new = np.where(cost_on < omega * (off - total) ** 2 + rho * z**2, on, off)
    move = omega * (new - total)
    return s + move / omega_s, b + move / omega_b, np.maximum(new, 0) if relu else new


def dense(a, w, u, omega_a, omega_w, rho):
    """By bisection in Lagrange's multiplier f: a' = a + f w'/ω_a, w' = w + f a'/ω_w."""
    high = np.full(u.shape, np.sqrt(omega_a * omega_w))
    low = -high
    for _ in range(60):
        f = (low + high) / 2
        shrink = (1 - f**2 / (omega_a * omega_w))[..., None]
        new_a = (a + (f / omega_a)[..., None] * w) / shrink
        new_w = (w + (f / omega_w)[..., None] * a) / shrink
        output = np.sum(new_a * new_w, axis=-1)
        below = output + f / rho < u
        low, high = np.where(below, f, low), np.where(below, high, f)
    return new_a, new_w, output
