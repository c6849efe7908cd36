"""The tables of docs/gpu.md, from the committed results; `unconfirmed` where there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.table_texts import Row, clean_rows, markdown

UNCONFIRMED = "unconfirmed"
Rows = list[Row]


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals; ``reached`` puts the rows of a machine into words."""

    work: str
    goal: str
    suite: str
    reached: Callable[[Rows], str]


def rows_of(results: Path, suite: str) -> Rows:
    """What a suite measured, of real size and behind a green gate; newest run of each machine."""
    rows = [row for row in clean_rows(f"gpu_{suite}", results) if not row["tiny"]]
    last = {row["device"]: row["date"] for row in sorted(rows, key=lambda row: row["date"])}
    return [row for row in rows if row["date"] == last[row["device"]]]


def _chosen(rows: Rows, **fields: object) -> Rows:
    measured = [row for row in rows if row["status"] == "measured"]
    return [row for row in measured if all(row.get(k) == v for k, v in fields.items())]


def _over(key: str, text: str, **fields: object) -> Callable[[Rows], str]:
    def reached(rows: Rows) -> str:
        return ", ".join(text.format(row[key], **row) for row in _chosen(rows, **fields))

    return reached


def _passes(rows: Rows) -> str:
    found = [r for r in _chosen(rows, scores="normal", shape=[10**9]) if "passes" in r]
    return ", ".join(f"{row['passes'].get('sparsekern')} passes" for row in found)


def _never(rows: Rows) -> str:
    plans = [row["speedup_over_dense"] for row in _chosen(rows, variant="plan")]
    count = sum(row["lost"] for row in _chosen(rows, variant="verdict"))
    return f"{min(plans):.2f}x at worst, {count} of {len(plans)} lost" if plans else ""


def _block(side: int) -> dict[str, object]:
    which = {"op": "mlp", "pass": "forward_backward", "dtype": "bfloat16"}
    return {**which, "pattern": f"{side}x{side}", "variant": "sparsekern_bsr"}


_X = "{0:.2f}x"
GOALS = (
    Goal(
        "masked AdamW, 1e8 float32 weights, density 0.5, dense state",
        "85 % of copy bandwidth; 1.45x of torch's fused step with mask multiplications",
        "masked_adamw",
        _over(
            "of_copy",
            "{0:.0%} of copy bandwidth; {speedup_over_rival:.2f}x",
            density=0.5,
            variant="masked",
        ),
    ),
    Goal(
        "the same at density 0.1, state of the kept weights alone",
        "3x of the same",
        "masked_adamw",
        _over("speedup_over_rival", _X, density=0.1, variant="compact_state"),
    ),
    Goal(
        "the same at density 0.1, compact values",
        "8x of the same",
        "masked_adamw",
        _over("speedup_over_rival", _X, density=0.1, variant="compact"),
    ),
    *(
        Goal(
            f"blocks of {side}, density 0.1, forward + backward, 4096-wide MLP, 8192 rows",
            f"{goal}x of cuBLAS bfloat16",
            "block",
            _over("speedup_over_dense", _X, **_block(side)),
        )
        for side, goal in ((128, 4.5), (64, 3), (32, 1.8))
    ),
    Goal("mask of the largest of 1e9 float32 scores", "5 passes at copy rate", "topk", _passes),
    Goal(
        "training step of ViT-L's encoder, MLPs of blocks of 64 at density 0.1",
        "1.3x of dense",
        "step",
        _over("speedup_over_dense", _X, variant="sparsekern_bsr", shape=[32, 256, 1024]),
    ),
    Goal("whatever a plan picks", "never below 0.97x of dense", "never_slower", _never),
)

_PRODUCT = {"op": "linear", "shape": [8192, 8192, 8192]}
CEILINGS = (
    (
        "copy of 4 GiB, read plus written",
        "ceilings",
        _over("gbps", "{0:.0f} GB/s", op="copy", shape=[1 << 32]),
    ),
    (
        "product of 8192 cubed, bfloat16",
        "ceilings",
        _over("tflops", "{0:.0f} TFLOP/s", dtype="bfloat16", **_PRODUCT),
    ),
    (
        "torch's fused AdamW, 1e8 weights",
        "ceilings",
        _over("gbps", "{0:.0f} GB/s", op="adamw", variant="fused"),
    ),
    *(
        (
            f"best of cuSPARSELt, 2:4, product {shape}",
            "semi_structured",
            _over("speedup_over_dense", _X, variant="cusparselt_best", shape=shape),
        )
        for shape in ([8192, 8192, 8192], [4096, 4096, 4096], [8192, 14336, 4096])
    ),
    (
        "torch BSR, blocks of 64, density 0.1",
        "torch_sparse",
        _over("speedup_over_dense", _X, variant="torch_bsr", pattern="64x64", density=0.1),
    ),
    (
        "torch CSR, density 0.01, bfloat16",
        "torch_sparse",
        _over("speedup_over_dense", _X, variant="torch_csr", density=0.01, dtype="bfloat16"),
    ),
)


def goals(results: Path) -> str:
    """What is aimed at, and what each machine reached."""
    body = [([g.work, g.goal], rows_of(results, g.suite), g.reached) for g in GOALS]
    return _table(["work", "goal"], body)


def ceilings(results: Path) -> str:
    """What each machine, cuBLAS and torch's own sparsity reach."""
    body = [([what], rows_of(results, suite), reached) for what, suite, reached in CEILINGS]
    return _table(["measurement"], body)


PHASES = (
    "oracle on the device",
    "gpu",
    "oracle on the device, Triton in place of CUDA C++",
    "rest of the contract on the device",
    "gpu, slow",
    "contract on the CPU",
)


def tests(results: Path) -> str:
    """What `make gpu-test` said on each machine."""
    body = [([name], rows_of(results, "tests"), _phase(name)) for name in PHASES]
    return _table(["tests"], body)


def _phase(name: str) -> Callable[[Rows], str]:
    def said(rows: Rows) -> str:
        found = [row for row in rows if row["phase"] == name]
        counts = [f", {row['passed']} passed" if "passed" in row else "" for row in found]
        return "; ".join(f"{r['status']}{count}" for r, count in zip(found, counts, strict=True))

    return said


Line = tuple[list[str], Rows, Callable[[Rows], str]]


def _table(head: list[str], body: list[Line]) -> str:
    """One column a machine; what no machine has measured is unconfirmed."""
    every = [row for _, rows, _ in body for row in rows]
    machines = sorted({row["device"] for row in every})
    lines = []
    for words, rows, reached in body:
        cells = [
            reached([row for row in rows if row["device"] == each]) or UNCONFIRMED
            for each in machines
        ]
        lines.append([*words, *(cells or [UNCONFIRMED])])
    commits = sorted({f"{row['device']}: commit `{row['commit']}`." for row in every})
    return "\n\n".join([markdown([*head, *(machines or ["measured"])], lines), *commits])
