"""Rows of states, for circuits."""

import os

import numpy as np

from ..._store import read_npz


def read_states(
    path: str | os.PathLike[str], needed: tuple[str, ...] = ("train",)
) -> dict[str, np.ndarray]:
    """The states ``[rows, variables]`` that circuits are fitted to, from an ``.npz`` file.

    Args:
        path: of a file with arrays train, valid and test, or some of them. With an array `n_vars`
            they hold packed bits.
        needed: arrays that must be there.

    Returns:
        The arrays by name; bits unpacked.

    Raises:
        ValueError: a file that is damaged or not of this form.
    """
    content, found = read_npz(path, ("train", "valid", "test", "n_vars"))
    count = content.pop("n_vars", None)
    for key in needed:
        if key not in content:
            raise ValueError(
                f"{path} has no array {key} of states [rows, variables]; it has "
                f"{', '.join(found) or 'none'}."
            )
    for key, rows in content.items():
        if rows.ndim != 2 or rows.dtype.kind not in "biuf":
            raise ValueError(
                f"{path}: {key} is {rows.dtype} of shape {rows.shape}; expected states "
                "[rows, variables]."
            )
        if count is not None:
            if rows.dtype != np.uint8 or count.shape != () or count > 8 * rows.shape[1]:
                raise ValueError(
                    f"{path}: with n_vars, {key} must be rows of that many packed bits."
                )
            content[key] = np.unpackbits(rows, axis=1, count=int(count))
        elif rows.dtype.kind == "b":
            content[key] = rows.astype(np.int8)
    return {key: content[key] for key in ("train", "valid", "test") if key in content}
