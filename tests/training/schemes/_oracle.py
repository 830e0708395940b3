"""The lifted multilayer perceptron with every copy written out, in numpy, from the definitions.

A dense unit j of layer k keeps copies `A[k][i, j]`, `W[k][i, j]` of its inputs and weights for
every sample i; an activation keeps `S[k][i, j]`, `B[k][i, j]` of its summand and bias; the output
factor keeps `O[i]`. A point is a dict of these and of the parameters' own values `PW[k]`, `PB[k]`.
"""

import numpy as np


def bilinear(a, w, z, omega_a, omega_w, rho):
    """Nearest points of `u = a·w` by bisection in Lagrange's multiplier."""
    limit = np.sqrt(omega_a * omega_w)
    low, high = np.full(z.shape, -limit), np.full(z.shape, limit)

    def solve(force):
        f = force[..., None]
        shrink = 1 - f**2 / (omega_a * omega_w)
        return (a + f / omega_a * w) / shrink, (w + f / omega_w * a) / shrink

    for _ in range(90):
        middle = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            p, q = solve(middle)
            below = np.sum(p * q, -1) + middle / rho < z
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    p, q = solve((low + high) / 2)
    return p, q, np.sum(p * q, -1)


def activation(s, b, z, omega_s, omega_b, rho, relu):
    """Nearest points of `z = σ(s + b)`."""
    total, omega = s + b, 1 / (1 / omega_s + 1 / omega_b)
    on = (omega * total + rho * z) / (omega + rho)
    new = on
    if relu:
        on, off = np.maximum(on, 0), np.minimum(total, 0)
        cost_on = omega * (on - total) ** 2 + rho * (on - z) ** 2
        cost_off = omega * (off - total) ** 2 + rho * z**2
        new = np.where(cost_on < cost_off, on, off)
    move = omega * (new - total)
    return s + move / omega_s, b + move / omega_b, np.maximum(new, 0) if relu else new


def proximal(logits, labels, omega):
    """Proximal step of the cross-entropy: Newton's method with halving, row by row."""
    out = np.empty_like(logits)
    for i, (row, label) in enumerate(zip(logits, labels, strict=True)):
        y = np.eye(len(row))[label]

        def cost(x, row=row, label=label):
            top = x.max()
            return (
                omega / 2 * np.sum((x - row) ** 2) + top + np.log(np.exp(x - top).sum()) - x[label]
            )

        x = row.copy()
        for _ in range(100):
            p = np.exp(x - x.max())
            p /= p.sum()
            hessian = omega * np.eye(len(row)) + np.diag(p) - np.outer(p, p)
            step = -np.linalg.solve(hessian, omega * (x - row) + p - y)
            scale = 1.0
            while cost(x + scale * step) > cost(x) and scale > 1e-6:
                scale /= 2
            x = x + scale * step
            if np.abs(step).max() < 1e-15:
                break
        out[i] = x
    return out


class Lifted:
    """The lifted network of a batch, all precisions spelled out.

    Args:
        x: inputs.
        labels: class numbers.
        rows: weight of every sample.
        consensus: `"average"` or `"product"`.
        p: precisions: dict with `weight` and `activation` (a list, one a layer), `unit`, `bias`,
            `output`, `node`.
    """

    def __init__(self, x, labels, rows, consensus, p):
        self.x, self.labels, self.rows = np.asarray(x, float), np.asarray(labels), rows
        self.consensus, self.p = consensus, p

    def forward(self, weights, biases):
        """The point at which everything holds."""
        self.layers = len(weights)
        batch, h, point = len(self.x), self.x, {}
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            units = len(w)
            point["A", k] = np.repeat(h[:, None], units, 1)
            point["W", k] = np.repeat(w[None], batch, 0)
            point["S", k] = h @ w.T
            point["B", k] = np.repeat(b[None], batch, 0)
            point["PW", k], point["PB", k] = w.copy(), b.copy()
            h = h @ w.T + b
            if k < self.layers - 1:
                h = np.maximum(h, 0)
        point["O", 0] = h
        return point

    def _rho(self, copies, precision):
        total = copies * precision
        return self.p["node"] * (total if self.consensus == "product" else 1.0)

    def dense(self, k, a, w, target):
        """Project the units of a dense layer."""
        p = self.p
        rho = self._rho(1, p["unit"])
        return bilinear(a, w, target, p["activation"][k], p["weight"][k], rho)

    def active(self, k, s, b, above):
        """Project an activation; `above` is what its readers hold."""
        p, last = self.p, k == self.layers - 1
        target = above if last else above.mean(1)
        rho = self._rho(
            1 if last else above.shape[1], p["output"] if last else p["activation"][k + 1]
        )
        return activation(s, b, target, p["unit"], p["bias"], rho, not last)

    def mean(self, copies):
        """Consensus of a parameter's copies over the samples."""
        return np.tensordot(self.rows, copies, 1) / self.rows.sum()

    def project(self, point, half):
        """The projection onto the constraints of one half; the others read the consensus."""
        new, batch = dict(point), len(self.x)
        for k in range(self.layers):
            if half == 0:
                new["A", k], new["W", k], new["S", k] = self.dense(
                    k, point["A", k], point["W", k], point["S", k]
                )
                new["PB", k] = self.mean(point["B", k])
                new["B", k] = np.repeat(new["PB", k][None], batch, 0)
            else:
                last = k == self.layers - 1
                above = point["O", 0] if last else point["A", k + 1]
                new["S", k], new["B", k], z = self.active(k, point["S", k], point["B", k], above)
                if last:
                    new["O", 0] = z
                else:
                    new["A", k + 1] = np.repeat(z[:, None], above.shape[1], 1)
                new["PW", k] = self.mean(point["W", k])
                new["W", k] = np.repeat(new["PW", k][None], batch, 0)
        if half == 0:
            new["O", 0] = proximal(point["O", 0], self.labels, self.p["output"])
        else:
            new["A", 0] = np.repeat(self.x[:, None], point["A", 0].shape[1], 1)
        return new

    def cyclic(self, state):
        """One backward sweep on `(u, z, W, b)`, the values on which the copies agree."""
        u, z, weights, biases = (list(part) for part in state)
        above = proximal(z[-1], self.labels, self.p["output"])
        batch, moved_w, moved_b = len(self.x), [], []
        for k in reversed(range(self.layers)):
            s, b, z[k] = self.active(k, u[k], np.repeat(biases[k][None], batch, 0), above)
            below = z[k - 1] if k else self.x
            wide = np.repeat(below[:, None], len(weights[k]), 1)
            above, w, u[k] = self.dense(k, wide, np.repeat(weights[k][None], batch, 0), s)
            moved_w.append(self.mean(w))
            moved_b.append(self.mean(b))
        return u, z, moved_w[::-1], moved_b[::-1]

    def start_cyclic(self, weights, biases):
        """The forward pass."""
        u, z, h = [], [], self.x
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            u.append(h @ w.T)
            h = u[-1] + b
            h = np.maximum(h, 0) if k < len(weights) - 1 else h
            z.append(h)
        self.layers = len(weights)
        return u, z, list(weights), list(biases)


def mix(*terms):
    """Linear combination of points, given as `(scale, point)`."""
    return {key: sum(scale * point[key] for scale, point in terms) for key in terms[0][1]}
