"""The paper's statements as functions that return a residual: what `klprojax verify` runs.

Every check takes `seed`, `size` and `dtype` and returns a `Check`. Sections 2, 3 and 4 are here.
"""

from ._check import Check as Check
from ._section_2 import section_2_consensus_of_copies as section_2_consensus_of_copies
from ._section_2 import section_2_consensus_projection as section_2_consensus_projection
from ._section_2 import section_2_convex_projection as section_2_convex_projection
from ._section_2 import section_2_dual_coordinates as section_2_dual_coordinates
from ._section_2 import section_2_duality as section_2_duality
from ._section_2 import section_2_gauge_invariance as section_2_gauge_invariance
from ._section_2 import section_2_product_projection as section_2_product_projection

# isort: split
from ._gaussians_and_families import section_2_gaussian as section_2_gaussian
from ._gaussians_and_families import section_2_moments as section_2_moments

# isort: split
from ._proposition_3_1 import proposition_3_1_factored as proposition_3_1_factored
from ._proposition_3_1 import proposition_3_1_i as proposition_3_1_i
from ._proposition_3_1 import proposition_3_1_ii_corrected as proposition_3_1_ii_corrected
from ._proposition_3_1 import proposition_3_1_ii_literal as proposition_3_1_ii_literal
from ._proposition_3_1 import proposition_3_1_ii_powers as proposition_3_1_ii_powers
from ._proposition_3_1 import proposition_3_1_iterates as proposition_3_1_iterates
from ._proposition_3_1 import proposition_3_1_zeros as proposition_3_1_zeros
from ._proposition_3_1 import section_3_1_rules as section_3_1_rules
from ._proposition_3_1 import t_proj_by_elimination as t_proj_by_elimination
from ._proposition_3_1 import t_proj_is_exact as t_proj_is_exact

# isort: split
from ._lemma_3_2 import lemma_3_2_jets as lemma_3_2_jets
from ._lemma_3_2 import lemma_3_2_tables as lemma_3_2_tables
from ._lemma_3_2 import theorem_3_3_seed as theorem_3_3_seed

# isort: split
from ._nearest_points import section_3_2_nearest_points as section_3_2_nearest_points

# isort: split
from ._theorem_3_3 import theorem_3_3_differences as theorem_3_3_differences
from ._theorem_3_3 import theorem_3_3_gradient as theorem_3_3_gradient
from ._theorem_3_3 import theorem_3_3_tables as theorem_3_3_tables
from ._theorem_3_3 import theorem_3_3_tables_gradient as theorem_3_3_tables_gradient

# isort: split
from ._corollary_3_4 import corollary_3_4_delta_lift as corollary_3_4_delta_lift
from ._corollary_3_4 import corollary_3_4_gradient as corollary_3_4_gradient
from ._corollary_3_4 import corollary_3_4_layers as corollary_3_4_layers
from ._corollary_3_4 import corollary_3_4_projection_order as corollary_3_4_projection_order
from ._corollary_3_4 import corollary_3_4_projections as corollary_3_4_projections
from ._corollary_3_4 import corollary_3_4_table_order as corollary_3_4_table_order
from ._corollary_3_4 import corollary_3_4_tables as corollary_3_4_tables
from ._corollary_3_4 import corollary_3_4_training as corollary_3_4_training
from ._corollary_3_4 import corollary_3_4_training_order as corollary_3_4_training_order

# isort: split
from ._modules import corollary_3_4_modules as corollary_3_4_modules

# isort: split
from ._section_4 import lemma_4_2 as lemma_4_2
from ._section_4 import lemma_4_3 as lemma_4_3
from ._section_4 import lemma_4_4 as lemma_4_4
from ._section_4 import lemma_4_5 as lemma_4_5
from ._section_4 import remark_4_7 as remark_4_7
from ._section_4 import theorem_4_1_a as theorem_4_1_a
from ._section_4 import theorem_4_1_a_derivative as theorem_4_1_a_derivative
from ._section_4 import theorem_4_1_b as theorem_4_1_b
from ._section_4 import theorem_4_1_differences as theorem_4_1_differences
from ._section_4 import theorem_4_6 as theorem_4_6
from ._section_4 import theorem_4_6_literal as theorem_4_6_literal

# isort: split
from ._circuits import section_4_best_states as section_4_best_states
from ._circuits import section_4_learning as section_4_learning
from ._circuits import section_4_leaves as section_4_leaves
from ._circuits import section_4_zeros as section_4_zeros

# isort: split
from ._differential import theorem_3_3_beliefs as theorem_3_3_beliefs
from ._differential import theorem_3_3_differential as theorem_3_3_differential
from ._differential import theorem_3_3_differential_forward as theorem_3_3_differential_forward
from ._differential import theorem_3_3_network as theorem_3_3_network
from ._differential import theorem_4_6_differential as theorem_4_6_differential

# isort: split
from ._schemes import one_operator_schemes as one_operator_schemes

# isort: split
from ._instances import one_operator_circuits as one_operator_circuits
from ._instances import one_operator_codes as one_operator_codes
from ._instances import one_operator_em as one_operator_em
from ._instances import one_operator_training as one_operator_training

# isort: split
from ._registry import Registered as Registered
from ._registry import registered_checks as registered_checks
from ._registry import run_check as run_check
from ._registry import run_checks as run_checks
from ._registry import statement as statement
from ._user_function import check_function as check_function
