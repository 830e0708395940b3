"""Pairwise contraction in numpy, outside of ``jit``: marginals, best states, draws.

Tables are multiplied two at a time along a searched tree; no program is compiled.
"""

from ._best_states import best_states as best_states
from ._draws import draw_states as draw_states
from ._marginals import Contracted as Contracted
from ._marginals import contract as contract
from ._on_graphs import Reduction as Reduction
from ._on_graphs import contract_graph as contract_graph
from ._on_graphs import reduce_graph as reduce_graph
from ._plan import BeyondLimits as BeyondLimits
from ._plan import Leaf as Leaf
from ._plan import leaves_of as leaves_of
from ._slices import contract_in_slices as contract_in_slices
from ._tree import Tree as Tree
from ._tree import levelled_tree as levelled_tree
