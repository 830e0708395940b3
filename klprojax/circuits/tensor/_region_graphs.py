"""Structures from region graphs: scopes and the ways to split them."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ._circuit import TensorCircuit
from ._structure import Node

Region = frozenset[int]
# Beyond this a circuit takes minutes to build and gigabytes a batch.
MOST_PARTITIONS = 200_000


def region_circuit(
    partitions: Mapping[Region, Sequence[Sequence[Region]]],
    cardinalities: Sequence[int],
    units: int,
) -> TensorCircuit:
    """Build a circuit from a region graph: scopes, each split into smaller scopes in some ways.

    A region that is not split is a dense sum over the unit-wise product of one input vector a
    variable. A partition multiplies the vectors of its parts unit by unit, then sums densely
    (a CP layer: no outer product of K² entries per row is formed, and its weights are K² rather
    than K³). A region split in several ways mixes its partitions unit by unit with weights of
    its own. The partitions of the whole scope are the components of the root.

    Args:
        partitions: per region its partitions; regions that are not listed are not split. Only
            what is below the region of all variables is built.
        cardinalities: states of each variable.
        units: length K of every vector.

    Raises:
        ValueError: parts that overlap or miss a variable, or too many partitions.

    Reference:
        Dennis and Ventura, Learning the architecture of sum-product networks using clustering on
        variables (2012); Peharz et al., Einsum networks (2020); Loconte et al., What is the
        relationship between tensor factorizations and circuits (2024), for CP layers.
    """
    root = frozenset(range(len(cardinalities)))
    found = _reachable(root, partitions)
    # A region's level is one above its highest part; the partitions of a level come first, then
    # the mixtures of them.
    level: dict[Region, int] = {}
    for region in sorted(found, key=len):
        parts = [level[part] for partition in found[region] for part in partition]
        level[region] = 1 + max(parts, default=-1)
    by_level: list[list[Region]] = [[] for _ in range(level[root] + 1)]
    for region in found:
        if region != root:
            by_level[level[region]].append(region)
    variables: list[int] = []
    inputs: dict[Region, Node] = {}
    for region, splits in found.items():
        if not splits:
            own = sorted(region)
            inputs[region] = tuple(range(len(variables), len(variables) + len(own)))
            variables += own
    identity: dict[Region, int] = {}
    levels: list[list[Node]] = []
    mixing: list[int] = []
    total = len(variables)
    for regions in by_level:
        sums: list[Node] = []
        mixed: list[tuple[Region, Node]] = []
        for region in sorted(regions, key=sorted):
            start = total + len(sums)
            if region in inputs:
                sums.append(inputs[region])
            else:
                sums += [tuple(identity[p] for p in split) for split in found[region]]
            if len(found[region]) > 1:
                mixed.append((region, tuple(range(start, total + len(sums)))))
            else:
                identity[region] = start
        total += len(sums)
        if sums:
            levels.append(sums)
        if mixed:
            mixing.append(len(levels))
            levels.append([children for _, children in mixed])
            for region, _ in mixed:
                identity[region] = total
                total += 1
    roots = [tuple(identity[part] for part in split) for split in found[root]]
    return TensorCircuit(
        cardinalities, units, variables, levels, roots or [inputs[root]], mixing=mixing
    )


def _reachable(
    root: Region, partitions: Mapping[Region, Sequence[Sequence[Region]]]
) -> dict[Region, list[tuple[Region, ...]]]:
    found: dict[Region, list[tuple[Region, ...]]] = {}
    stack, count = [root], 0
    while stack:
        region = stack.pop()
        if region in found:
            continue
        found[region] = []
        for split in partitions.get(region, ()):
            if len(split) < 2 or not all(split) or sum(map(len, split)) != len(region):
                raise ValueError(
                    f"A partition of region {sorted(region)[:8]} into {len(split)} parts of "
                    f"{sum(map(len, split))} variables; it needs at least 2 parts that are not "
                    f"empty, of {len(region)} variables in all."
                )
            if region.union(*split) != region or len(frozenset().union(*split)) != len(region):
                raise ValueError(
                    f"The parts of a partition of region {sorted(region)[:8]} are not disjoint "
                    "subsets of it."
                )
            found[region].append(tuple(split))
            stack += split
            count += 1
        if count > MOST_PARTITIONS:
            raise ValueError(
                f"The region graph has more than {MOST_PARTITIONS} partitions; take a coarser one."
            )
    return found


def rat_spn(
    cardinalities: Sequence[int],
    units: int = 32,
    *,
    depth: int = 2,
    repetitions: int = 4,
    seed: int = 0,
) -> TensorCircuit:
    """Build a random tensorised circuit: random binary trees over the variables, mixed at the root.

    Every repetition halves the variables at random, ``depth`` times or down to single variables.
    Equal scopes are one region, split in as many ways as they came up. See `region_circuit` for
    the layers.

    Args:
        cardinalities: states of each variable.
        units: length K of every vector.
        depth: halvings from the root to a leaf region; 0 is a mixture of factorised distributions.
        repetitions: number of random trees.
        seed: of the random splits.

    Returns:
        The circuit's structure; `init` makes parameters.

    Raises:
        ValueError: a negative depth or no repetition.

    Reference:
        Peharz et al., Random sum-product networks: a simple and effective approach to
        probabilistic deep learning (2019).

    Example:
        >>> import numpy as np
        >>> from klprojax.circuits.tensor import rat_spn
        >>> circuit = rat_spn((2,) * 8, units=4, depth=2, repetitions=3)
        >>> circuit.components
        3
        >>> rows = np.zeros((5, 8), int)
        >>> circuit.log_likelihood(circuit.init(0), rows).shape
        (5,)
    """
    if depth < 0 or repetitions < 1:
        raise ValueError(
            f"depth is {depth} and repetitions is {repetitions}; they must be at least 0 and 1."
        )
    rng = np.random.default_rng(seed)
    partitions: dict[Region, list[tuple[Region, ...]]] = {}
    for _ in range(repetitions):
        front = [frozenset(range(len(cardinalities)))]
        for _ in range(depth):
            below: list[Region] = []
            for region in front:
                if len(region) > 1:
                    order = rng.permutation(sorted(region)).tolist()
                    half = len(order) // 2
                    _add(partitions, region, (frozenset(order[:half]), frozenset(order[half:])))
                    below += partitions[region][-1]
            front = below
    return region_circuit(partitions, cardinalities, units)


def _add(partitions: dict, region: Region, split: tuple[Region, ...]) -> None:
    """Add a partition; one that is known already moves to the end."""
    own = partitions.setdefault(region, [])
    same = [other for other in own if set(other) == set(split)]
    for other in same:
        own.remove(other)
    own.append(same[0] if same else split)


def quad_tree(height: int, width: int, units: int = 32, *, cardinality: int = 2) -> TensorCircuit:
    """Build a circuit over an image whose regions are quartered down to pixels.

    Pixel (i, j) is variable ``i * width + j``. Each rectangle is halved along both axes (along one
    where the other has a single pixel), so there is one partition a region and no mixture. See
    `region_circuit` for the layers.

    Args:
        height: rows of pixels.
        width: pixels of a row.
        units: length K of every vector.
        cardinality: states of every pixel.

    Returns:
        The circuit's structure; `init` makes parameters.

    Raises:
        ValueError: an image without pixels.

    Reference:
        Loconte et al., What is the relationship between tensor factorizations and circuits (2024).
    """
    _check_image(height, width)
    partitions: dict[Region, list[tuple[Region, ...]]] = {}
    stack = [(0, height, 0, width)]
    while stack:
        top, bottom, left, right = stack.pop()
        if bottom - top == 1 and right - left == 1:
            continue
        parts = [(a, b, c, d) for a, b in _halves(top, bottom) for c, d in _halves(left, right)]
        whole = _pixels((top, bottom, left, right), width)
        partitions[whole] = [tuple(_pixels(part, width) for part in parts)]
        stack += parts
    return region_circuit(partitions, (cardinality,) * (height * width), units)


def poon_domingos(
    height: int,
    width: int,
    units: int = 32,
    *,
    delta: int | Sequence[int] = 4,
    cardinality: int = 2,
) -> TensorCircuit:
    """Build a circuit over an image whose rectangles are split in two in every way.

    Pixel (i, j) is variable ``i * width + j``. A rectangle is split along every line of a grid of
    ``delta`` pixels that crosses it; rectangles that no line crosses are leaf regions. There are
    about ``(h w)² / 4`` regions for a grid of h x w cells, with ``h + w`` levels. See
    `region_circuit` for the layers.

    Args:
        height: rows of pixels.
        width: pixels of a row.
        units: length K of every vector.
        delta: distance of the lines; of several, a rectangle is split by the first that crosses
            it, so list the coarsest first.
        cardinality: states of every pixel.

    Returns:
        The circuit's structure; `init` makes parameters.

    Raises:
        ValueError: an image without pixels, a distance below 1, or too many partitions.

    Reference:
        Poon and Domingos, Sum-product networks: a new deep architecture (2011).
    """
    _check_image(height, width)
    deltas = (delta,) if isinstance(delta, int) else tuple(delta)
    if not deltas or min(deltas) < 1:
        raise ValueError(f"delta is {delta}; give distances of at least 1 pixel.")
    partitions: dict[Region, list[tuple[Region, ...]]] = {}
    stack, seen, count = [(0, height, 0, width)], set(), 0
    while stack:
        box = stack.pop()
        if box in seen:
            continue
        seen.add(box)
        splits = next(filter(None, (_cuts(box, d) for d in deltas)), [])
        count += len(splits)
        if count > MOST_PARTITIONS:
            raise ValueError(
                f"The region graph has more than {MOST_PARTITIONS} partitions; take a larger delta "
                f"than {delta} for an image of {height} x {width}."
            )
        if splits:
            partitions[_pixels(box, width)] = [
                (_pixels(one, width), _pixels(two, width)) for one, two in splits
            ]
            for pair in splits:
                stack += pair
    return region_circuit(partitions, (cardinality,) * (height * width), units)


Box = tuple[int, int, int, int]  # top, bottom, left, right


def _check_image(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"The image is {height} x {width}; it needs at least one pixel.")


def _halves(first: int, last: int) -> Iterable[tuple[int, int]]:
    middle = (first + last) // 2
    return [(first, last)] if middle == first else [(first, middle), (middle, last)]


def _pixels(box: Box, width: int) -> Region:
    top, bottom, left, right = box
    return frozenset(i * width + j for i in range(top, bottom) for j in range(left, right))


def _cuts(box: Box, delta: int) -> list[tuple[Box, Box]]:
    top, bottom, left, right = box
    lines = range((top // delta + 1) * delta, bottom, delta)
    out = [((top, i, left, right), (i, bottom, left, right)) for i in lines]
    columns = range((left // delta + 1) * delta, right, delta)
    return out + [((top, bottom, left, j), (top, bottom, j, right)) for j in columns]
