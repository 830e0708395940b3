"""Plots of graphs, circuits, iterations and training runs; they need the extra `[plot]`."""

from ._circuit import circuit as circuit
from ._convergence import convergence as convergence
from ._curves import learning_curves as learning_curves
from ._dynamics import dynamics as dynamics
from ._factor_graph import factor_graph as factor_graph
