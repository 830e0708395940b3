"""Circuits from files: agreement with the reference answers, size, and time of one sweep.

Every PSDD and SPN of the data folder: the log-partition, and where its density set is there the
mean log-likelihood of the test rows, against values computed by other programs. One sweep gives the
log-partition, all variable marginals and all gate and visit probabilities. The claim is agreement
to 1e-6, relative where the value exceeds 1; the exit status is 1 if not.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import _shared as shared
from benchmarks.circuits import load

MAX_DIFFERENCE = 1e-6
SWEEPS = 7


def rows_to_score(data: Path, name: str) -> Any:
    """Test rows of the set that a circuit was learned from; None if it is not there."""
    known = name.removeprefix("spnz:").split(".")[0].split("-")[0]
    try:
        return load(data, known, "test")
    except FileNotFoundError:
        return None


def examine(record: dict[str, Any], name: str, data: Path) -> dict[str, Any]:
    """Read, sweep, compare."""
    import jax
    import numpy as np

    from klprojax import circuits

    read = circuits.read_psdd if record["format"] == "psdd" else circuits.read_spn
    start = shared.now()
    circuit, log_weights, leaves = read(data / "circuits" / record["file"])
    row: dict[str, Any] = {
        "case": name,
        "variables": circuit.num_variables,
        "nodes": circuit.num_nodes,
        "edges": circuit.num_edges,
        "depth": circuit.depth,
        "read_s": shared.now() - start,
    }
    run = jax.jit(lambda weights, leaves: circuits.sweep(circuit, weights, leaf_parameters=leaves))
    start = shared.now()
    swept = jax.block_until_ready(run(log_weights, leaves))
    row["first_sweep_s"] = shared.now() - start
    times = []
    for _ in range(SWEEPS):
        start = time.process_time()
        jax.block_until_ready(run(log_weights, leaves))
        times.append(time.process_time() - start)
    row["sweep_cpu_s"] = statistics.median(times)
    log_partition = float(swept.log_partition)
    row["log_partition_difference"] = shared.relative(log_partition, record["log_partition"])
    rows = rows_to_score(data, name) if "avg_ll_test" in record else None
    if rows is not None:
        start = time.process_time()
        values = circuits.log_likelihood(
            circuit, log_weights, rows, leaf_parameters=leaves, batch_size=256
        )
        # The references do not normalise.
        mean = float(np.asarray(values, np.float64).mean()) + log_partition
        row["likelihood_cpu_s"] = time.process_time() - start
        row["test_rows"] = len(rows)
        row["test_log_likelihood"] = mean
        row["test_difference"] = shared.relative(mean, record["avg_ll_test"])
    jax.clear_caches()
    return row


def agrees(row: dict[str, Any]) -> bool:
    """Whether a circuit has the reference's answers."""
    gaps = (row["log_partition_difference"], row.get("test_difference", 0.0))
    return all(gap <= MAX_DIFFERENCE for gap in gaps)


def markdown(report: dict[str, Any]) -> str:
    """The table, largest circuit last."""
    f = shared.figure
    rows = sorted(report["rows"], key=lambda row: row["edges"])
    body = [
        [
            row["case"],
            str(row["variables"]),
            str(row["edges"]),
            str(row["depth"]),
            f(row["read_s"], ".2f"),
            f(row["first_sweep_s"], ".2f"),
            f(1e3 * row["sweep_cpu_s"], ".2f"),
            f(row["log_partition_difference"], ".1e"),
            f(row.get("test_log_likelihood"), ".4f"),
            f(row.get("test_difference"), ".1e"),
        ]
        for row in rows
    ]
    wrong = [row["case"] for row in rows if not agrees(row)]
    return (
        "# Circuits from files\n\n"
        f"`python -m benchmarks reference_circuits`, float{report['float_bits']}, "
        f"{report['device']}, {report['cpu_count']} cores, jax {report['versions']['jax']}, commit "
        f"{str(report['commit'])[:12]}, {report['date'][:10]}.\n\n"
        f"{len(rows)} circuits; disagreeing with the reference: {', '.join(wrong) or 'none'}. "
        "A sweep is the upward and downward pass with all marginals, gate and visit "
        f"probabilities, median of {SWEEPS}, CPU milliseconds; the first includes compilation.\n\n"
        + shared.markdown_table(
            (
                "circuit",
                "variables",
                "edges",
                "depth",
                "read s",
                "first sweep s",
                "sweep ms",
                "log Z difference",
                "mean test log-likelihood",
                "its difference",
            ),
            body,
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a circuit disagrees with its reference."""
    parser = shared.base_parser("reference_circuits", __doc__)
    shared.add_data_dir(parser, "circuits/ and density20/")
    parser.add_argument("--float-bits", type=int, choices=(32, 64), default=64)
    options = parser.parse_args(argv)
    data = shared.data_dir(options)
    import jax

    jax.config.update("jax_enable_x64", options.float_bits == 64)
    records = json.loads((data / "circuits" / "REFERENCE.json").read_text())
    rows: list[dict[str, Any]] = []
    report = {
        "benchmark": "reference_circuits",
        **shared.environment(options.float_bits),
        "rows": rows,
    }
    names = [name for name in records if not options.only or name in options.only]
    for name in shared.tracked(names, str):
        rows.append(examine(records[name], name, data))
        if options.json is not None:
            shared.write_json(options.json, report)
    shared.publish(options, markdown(report), report)
    return int(not all(map(agrees, rows)))
