"""Files given to the wrong command, told by their extension: one answer that says where they go."""

from os import PathLike

_MODELS = (
    "a model: .uai, .bif, .fg, .cnf (also .gz) or the name of a shipped network",
    "uai bif fg cnf",
)
_CIRCUITS = (
    "a circuit: .npz, .psdd, .sdd, .nnf, .spn.txt, or a model: .uai, .bif, .fg, .cnf",
    "npz psdd sdd nnf spn txt uai bif fg cnf",
)
_EVIDENCE = ("evidence: .evid or .json", "evid json")
_SAVED = ("a file to write: .npz, .psdd, .spn.txt or .nnf", "npz psdd spn txt nnf")
_CNFS = ("a formula in clauses: .cnf", "cnf")
_VTREES = ("a vtree: .vtree", "vtree")
_EXPECTED = {
    "infer": _MODELS,
    "infer --evidence": _EVIDENCE,
    "circuit query": _CIRCUITS,
    "circuit query --cnf": _CNFS,
    "circuit query --save": _SAVED,
    "circuit query --vtree": _VTREES,
}

_CONVERT = "convert it to .bif, which keeps names and says which parents a row belongs to"
_ROWS = "rows of data go to circuit fit, or to circuit query --data, as an .npz file"
# What files with these endings are, and what to do with them.
_KINDS = {
    "dimacs": ("a formula in clauses", "rename it to .cnf; infer and circuit query read it"),
    "wcnf": ("a MaxSAT problem", "write it as a factor graph (.uai): weights become factors"),
    "ddnnf": ("a circuit in negation normal form", "rename it to .nnf; circuit query reads it"),
    "xml xmlbif xdsl dsl net hugin dsc bifxml": ("a network of another program", _CONVERT),
    "csv tsv arff xlsx parquet data npy": ("a table", _ROWS),
    "npz": ("an archive of arrays", "saved circuits go to circuit query, data to circuit fit"),
    "uai bif fg cnf": ("a model", "models go to infer or circuit query"),
    "psdd sdd nnf spn": ("a circuit", "circuits go to circuit query"),
    "vtree": ("a vtree", "give it to circuit query with --vtree"),
    "evid json": ("evidence", "give it to infer with --evidence"),
    "mar pr": ("a result", "give the model that it is a result of"),
    "alist": ("a parity-check matrix", "klprojax.graphs.read_alist and klprojax.codes use it"),
    "pkl pickle pt pth h5 onnx": ("a file of a training package", "export arrays to .npz"),
    "py": ("a program", "functions go to verify --function"),
}


def check_kind(path: str | PathLike[str] | None, command: str) -> None:
    """Refuse a file whose ending says that it is of another kind.

    Raises:
        ValueError: naming what it is, what the command expects, and what to do.
    """
    from ..graphs._files._text import format_suffix

    suffix = "" if path is None else format_suffix(path).removeprefix(".")
    expected, accepted = _EXPECTED[command]
    if suffix in accepted.split():
        return
    for endings, (kind, advice) in _KINDS.items():
        if suffix in endings.split():
            raise ValueError(f"{path} is {kind}; {command} expects {expected}. Advice: {advice}.")
