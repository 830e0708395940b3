"""The side of jpc (predictive coding) of ``python -m benchmarks tasks``."""

import jax
import jax.numpy as jnp
import jpc
import numpy as np
import optax
from equinox import filter as only
from equinox import is_array, nn

from benchmarks._peers._serve import Tasks, clock, elapsed, serve


class PredictiveCoding(Tasks):
    """A multi-layer perceptron trained by jpc's own step, its solver and tolerances as they are."""

    def start(self) -> dict[str, str]:
        """Say what runs."""
        return {"jax": jax.__version__, "jpc": getattr(jpc, "__version__", "from its sources")}

    def train(
        self, path: str, hidden: list[int], rate: float, seed: int, epochs: int, batch_size: int
    ) -> dict[str, float]:
        """Accuracies at the epoch of the best validation; seconds of updates after the first."""
        with np.load(path) as file:
            data = {name: jnp.asarray(file[name]) for name in file.files}
        x, y = data["x_train"], data["y_train"]
        widths = [x.shape[1], *hidden, int(y.max()) + 1]
        keys = jax.random.split(jax.random.PRNGKey(seed), len(widths))
        layers: list = [
            nn.Sequential([nn.Linear(a, b, key=key), nn.Lambda(jax.nn.relu)])
            for a, b, key in zip(widths[:-2], widths[1:-1], keys, strict=False)
        ]
        model = [*layers, nn.Linear(widths[-2], widths[-1], key=keys[-1])]
        optimiser = optax.adam(rate)
        state = optimiser.init((only(model, is_array), None))

        def accuracy(part: str) -> float:
            rows = [data[f"x_{part}"][k : k + 1000] for k in range(0, len(data[f"x_{part}"]), 1000)]
            guess = jnp.concatenate([_apply(model, batch) for batch in rows])
            return float(jnp.mean(guess == data[f"y_{part}"]))

        targets, rng = jax.nn.one_hot(y, widths[-1]), np.random.default_rng(seed)
        best, seconds, since = (-1.0, -1.0), {"cpu_s": 0.0, "wall_s": 0.0}, None
        for _ in range(epochs):
            order = rng.permutation(len(y))
            for k in range(0, len(y) - batch_size + 1, batch_size):
                rows = order[k : k + batch_size]
                found = jpc.make_pc_step(
                    model,
                    optimiser,
                    state,
                    output=targets[rows],
                    input=x[rows],
                    loss_id="ce",
                )
                model, state = found["model"], found["opt_state"]
                if since is None:
                    jax.block_until_ready(found["loss"])
                    since = clock()
            jax.block_until_ready(found["loss"])
            assert since is not None
            seconds = {key: seconds[key] + value for key, value in elapsed(since).items()}
            best = max(best, (accuracy("validation"), accuracy("test")))
            since = clock()
        return {"validation": best[0], "test": best[1], **seconds}


@jax.jit
def _forward(weights, x):
    for weight, bias in weights[:-1]:
        x = jax.nn.relu(x @ weight.T + bias)
    weight, bias = weights[-1]
    return jnp.argmax(x @ weight.T + bias, -1)


def _apply(model, x):
    """Classes that the layers give for rows of x."""
    layers = [*(part.layers[0] for part in model[:-1]), model[-1]]
    return _forward([(layer.weight, layer.bias) for layer in layers], x)


if __name__ == "__main__":
    serve(PredictiveCoding())
