"""cirkit's side of ``python -m benchmarks circuits``; runs in an environment with ``libcirkit``."""

import importlib.metadata
import json
from typing import Any

import numpy as np
import torch
from cirkit.pipeline import PipelineContext
from cirkit.templates import data_modalities

from benchmarks._peers._serve import Tasks, clock, elapsed, peak_rss_mib, serve


def hidden_chow_liu_tree(rows: torch.Tensor, units: int):
    """The symbolic circuit."""
    return data_modalities.tabular_data(
        "chow-liu-tree",
        data=rows,
        input_layers={"name": "categorical", "args": {"num_categories": 2}},
        num_input_units=units,
        sum_product_layer="cp",
        num_sum_units=units,
    )


class Cirkit(Tasks):
    """Hidden Chow-Liu trees in torch, one thread."""

    def start(self) -> dict[str, Any]:
        """Say what runs."""
        torch.set_num_threads(1)
        torch.manual_seed(0)
        torch.ones(8, 8) @ torch.ones(8, 8)
        return {
            "versions": {n: importlib.metadata.version(n) for n in ("libcirkit", "torch")},
            "idle_rss_mib": peak_rss_mib(),
        }

    def build(self, path: str, units: int, batch: int) -> dict[str, Any]:
        """From rows to the first gradient."""
        rows = torch.from_numpy(np.load(path).astype(np.int64))
        since = clock()
        symbolic = hidden_chow_liu_tree(rows, units)
        # Its fastest setting: folded layers, rewritten, log-sum-exp.
        context = PipelineContext(backend="torch", semiring="lse-sum", fold=True, optimize=True)
        circuit = context.compile(symbolic)
        optimizer = torch.optim.Adam(circuit.parameters(), lr=0.01)
        part = rows[:batch]

        def forward():
            with torch.no_grad():
                return circuit(part)

        def gradient(of: torch.Tensor = part):
            optimizer.zero_grad()
            loss = -circuit(of).mean()
            loss.backward()
            return loss

        def epoch():
            order = torch.randperm(len(rows))
            for first in range(0, len(rows), batch):
                gradient(rows[order[first : first + batch]])
                optimizer.step()

        gradient()
        answer = {"build": elapsed(since)}
        self.timed |= {"forward": forward, "gradient": gradient, "epoch": epoch}
        count = sum(p.numel() for p in circuit.parameters())
        return answer | {"parameters": count, "log_likelihood": float(forward().mean())}

    def export(self, path: str, units: int, batch: int, out: str) -> dict[str, Any]:
        """Write a circuit layer by layer, its weights and its log-likelihoods of some rows."""
        rows = torch.from_numpy(np.load(path).astype(np.int64))
        context = PipelineContext(backend="torch", semiring="lse-sum", fold=False, optimize=False)
        circuit = context.compile(hidden_chow_liu_tree(rows, units))
        layers = list(circuit.topological_ordering())
        place = {id(layer): k for k, layer in enumerate(layers)}
        found, arrays = [], {}
        for k, layer in enumerate(layers):
            inputs = [place[id(below)] for below in circuit.layer_inputs(layer)]
            entry: dict[str, Any] = {"kind": type(layer).__name__, "inputs": inputs}
            if not inputs:
                entry["variable"] = int(layer.scope_idx.item())
            found.append(entry)
            for parameter in layer.params.values():
                arrays[f"layer{k}"] = parameter()[0].detach().numpy()
        with torch.no_grad():
            values = circuit(rows[:batch]).reshape(-1).numpy()
        np.savez(out, layers=json.dumps(found), values=values, **arrays)
        return {"layers": len(found)}


if __name__ == "__main__":
    serve(Cirkit())
