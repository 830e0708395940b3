"""The lifted multilayer perceptron with every copy written out, in numpy, from the definitions.

A dense unit j of layer k keeps copies `A[k][i, j]`, `W[k][i, j]` of its inputs and weights for
every sample i; an activation keeps `S[k][i, j]`, `B[k][i, j]` of its summand and bias; the output
factor keeps `O[i]`. A point is a dict of these and of the parameters' own values `PW[k]`, `PB[k]`.
"""

import numpy as np

from tests.reference import local_projections


class Lifted:
    """The lifted network of a batch, all precisions spelled out.

    Args:
        x: inputs.
        labels: class numbers.
        rows: weight of every sample.
        consensus: `"average"` or `"product"`.
        p: precisions: dict with `weight` and `activation` (a list, one per layer), `unit`, `bias`,
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
        return local_projections.dense(a, w, target, p["activation"][k], p["weight"][k], rho)

    def active(self, k, s, b, above):
        """Project an activation; `above` is what its readers hold."""
        p, last = self.p, k == self.layers - 1
        target = above if last else above.mean(1)
        rho = self._rho(
            1 if last else above.shape[1], p["output"] if last else p["activation"][k + 1]
        )
        return local_projections.activation(s, b, target, p["unit"], p["bias"], rho, not last)

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
            new["O", 0] = local_projections.loss(point["O", 0], self.labels, self.p["output"])
        else:
            new["A", 0] = np.repeat(self.x[:, None], point["A", 0].shape[1], 1)
        return new
