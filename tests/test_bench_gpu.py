"""The GPU benchmarks, tiny and on the CPU: every case measures what it says, or says why not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from torch import nn

from bench import optimizer
from bench.gpu import (
    block,
    build,
    gate,
    machine,
    masked_adamw,
    never_slower,
    pages,
    run,
    semi_structured,
    shapes,
    step,
    stopwatch,
    topk,
    torch_sparse,
    worker,
)
from bench.gpu.session import (
    LOST_DEVICE,
    Case,
    Ceilings,
    Comparison,
    Session,
    Work,
    WrongResultError,
)
from bench.gpu.shards import Outcome, run_pytest
from bench.gpu.suites import ALL, CEILINGS, SUITES
from bench.record import Recorder
from bench.timing import Times
from sparsekern.nn import SparseLinear, measure
from sparsekern.ops import OPS
from tests.gpu import run as tests_run

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
# Contenders that a CPU, or this version, does not have.
GPU_ONLY = {
    "kernel_triton",
    "torch_cutlass",
    "torch_cusparselt",
}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    made = Session(CPU, True, Recorder(tmp_path, "green"), Console(quiet=True), time.time() + 600)
    made.ceilings = Ceilings(copy_gbps=10.0, bf16_tflops=0.1)
    return made


def rows_of(session: Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in session.recorder.path.read_text().splitlines()]


@pytest.mark.parametrize("name", list(ALL))
def test_every_suite_runs_tiny(
    name: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every case writes rows; what is ours is measured, what is missing says why."""
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    cases = list(ALL[name].cases(True))
    session.run(name, cases)
    rows = rows_of(session)
    assert {row["suite"] for row in rows} == {f"gpu_{name}"}
    assert len({case.name for case in cases}) == len(cases)
    for row in rows:
        missing = row["status"].startswith("not available: ") and (
            row.get("variant") in GPU_ONLY
            or row.get("case", "").startswith("cuSPARSELt")
            or (row.get("variant") == "torch_csr" and row["dtype"] == "bfloat16")
        )
        assert missing or row["status"] == "measured", row
        assert row["tiny"]
        assert row["copy_gbps"] == 10.0
    measured = [row for row in rows if "p50_ms" in row]
    assert measured
    for row in measured:
        assert {"op", "shape", "dtype", "density"} <= set(row)
    if name in SUITES:
        ours = [row for row in measured if row["variant"] not in {"dense", "dense_again"}]
        assert ours
        assert all("dense_ms" in row or "rival_ms" in row for row in ours)


def test_suites_in_order_of_value() -> None:
    assert list(CEILINGS) == ["ceilings", "semi_structured", "torch_sparse"]
    assert list(SUITES) == ["masked_adamw", "block", "topk", "step", "csr", "never_slower"]
    for suite in ALL.values():
        assert set(suite.ops) <= set(OPS)
    for name in SUITES:
        assert SUITES[name].ops
    full = {name: [case.name for case in suite.cases(False)] for name, suite in ALL.items()}
    assert all(len(set(names)) == len(names) > 0 for names in full.values())
    assert full["ceilings"][0] == "copy of 67108864 bytes"


def test_rates_and_ratios_by_hand(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 ms dense, 5 ms ours, 20 ms the rival; 40 MB are 8 GB/s, 0.1 GFLOP 0.02 TFLOP/s."""
    seconds = {"dense": 0.010, "ours": 0.005, "rival": 0.020}
    times = {name: Times(s, s, s, 7) for name, s in seconds.items()}
    monkeypatch.setattr("bench.gpu.session.interleave", lambda *_: times)
    what = Comparison({"op": "it"}, {"ours": Work(bytes=4e7, flops=1e8)}, rival="rival")
    session.suite = "hand"
    session.compare(what, {name: lambda: lambda: None for name in seconds})
    row = {row["variant"]: row for row in rows_of(session)}["ours"]
    assert (row["gbps"], row["of_copy"]) == (8.0, 0.8)
    assert (row["tflops"], row["of_bf16_rate"]) == (0.02, 0.2)
    assert (row["dense_ms"], row["speedup_over_dense"]) == (10.0, 2.0)
    assert (row["rival"], row["rival_ms"], row["speedup_over_rival"]) == ("rival", 20.0, 4.0)
    assert row["gate"] == "green"


def test_what_cannot_run_is_a_row(session: Session) -> None:
    def broken() -> Callable[[], None]:
        raise RuntimeError("no such kernel\nand a long story")

    def wrong() -> Callable[[], None]:
        raise WrongResultError("relative error 1")

    session.suite = "any"
    makers = {"dense": lambda: lambda: None, "broken": broken, "wrong": wrong}
    times = session.compare(Comparison({"op": "it"}), makers)
    assert list(times) == ["dense"]
    status = {row["variant"]: row["status"] for row in rows_of(session)}
    assert status == {
        "broken": "not available: RuntimeError: no such kernel",
        "wrong": "wrong: WrongResultError: relative error 1",
        "dense": "measured",
    }
    assert session.compare(Comparison({}), {"broken": broken}) == {}


def test_a_case_that_fails_does_not_end_the_suite(session: Session) -> None:
    def broken(_: Session) -> None:
        raise ValueError("cannot be built")

    ran: list[str] = []
    session.run("any", [Case("one", broken), Case("two", lambda _: ran.append("two"))])
    assert ran == ["two"]
    (row,) = rows_of(session)
    assert (row["case"], row["status"]) == ("one", "not available: ValueError: cannot be built")


def test_what_does_not_fit_is_listed(session: Session) -> None:
    session.deadline = time.time() - 1
    session.run("any", [Case("late", lambda _: pytest.fail("it ran"))])
    session.deadline = time.time() + 60
    session.run("any", [Case("red", lambda _: pytest.fail("it ran"))], "2 contract tests fail")
    assert [(row["case"], row["status"]) for row in rows_of(session)] == [
        ("late", "not run: the budget was spent"),
        ("red", "not run: 2 contract tests fail"),
    ]


def test_another_process_goes_on_behind_the_case_that_died(tmp_path: Path) -> None:
    """The first dies within "two"; the second skips "one", reports "two", runs "three"."""
    journal, ran = tmp_path / "journal", []

    def begin() -> Session:
        recorder = Recorder(tmp_path, "green")
        return Session(CPU, True, recorder, Console(quiet=True), time.time() + 60, journal)

    def die(_: Session) -> None:
        raise SystemExit(LOST_DEVICE)

    cases = [Case("one", lambda _: ran.append("one")), Case("two", die)]
    cases.append(Case("three", lambda _: ran.append("three")))
    with pytest.raises(SystemExit):
        begin().run("any", cases)
    second = begin()
    second.run("any", cases)
    assert ran == ["one", "three"]
    (row,) = rows_of(second)
    assert row["case"] == "two"
    assert row["status"] == "not run: the process ended while it was measured"


def job_of(folder: Path, red: dict[str, str], journal: str = "") -> worker.Job:
    return worker.Job(
        names=("topk",),
        device="cpu",
        tiny=True,
        gate="green",
        red=red,
        results=str(folder),
        journal=journal,
        deadline=time.time() + 60,
        date="today",
    )


def test_supervision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a worker ends well, or one comes no further."""
    job = job_of(tmp_path, {}, str(tmp_path / "journal"))
    assert worker.Job.from_json(job.to_json()) == job
    codes = [LOST_DEVICE, 0]

    def fake(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert worker.Job.from_json(command[-1]) == job
        with (tmp_path / "journal").open("a") as file:
            file.write("one line\n")
        return subprocess.CompletedProcess(command, codes.pop(0))

    monkeypatch.setattr(subprocess, "run", fake)
    assert run.supervise(job) == 2

    def hang(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", hang)
    assert run.supervise(job) == 1


def test_the_command(tmp_path: Path) -> None:
    """As `make gpu-bench` calls it, but for the device."""
    command = [sys.executable, "-m", "bench.gpu.run", "masked_adamw", "topk", "--no-gate"]
    command += ["--device", "cpu", "--tiny", "--results", str(tmp_path), "--budget-s", "60"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "masked_adamw: adamw step [10000] unstructured 0.5 float32 masked: " in result.stdout
    (file,) = tmp_path.glob("*/*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["suite"] for row in rows} == {"gpu_masked_adamw", "gpu_topk"}
    assert {row["gate"] for row in rows} == {"UNVERIFIED"}
    assert {"triton", "cuda", "host", "torch", "commit"} <= set(rows[0])


def test_suites_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.names_of(None) == tuple(ALL)
    assert run.names_of(["topk", "all-ceilings", "topk"]) == ("topk", *CEILINGS)
    with pytest.raises(typer.BadParameter, match="Expected suites to be of all-ceilings, .*'tok'"):
        run.names_of(["tok"])
    with pytest.raises(typer.BadParameter, match="Expected --tiny with --device cpu. Got real"):
        run.main(["topk"], device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.BadParameter, match="Expected a CUDA device. Got none that torch"):
        run.main(["topk"], gate=False)


# The gate

REPORT = """<testsuites><testsuite>
<testcase name="test_matches_the_oracle[mask_topk-auto-cuda-float32-a]"/>
<testcase name="test_matches_the_oracle[mask_topk_bits-auto-cuda-float32-a]"><failure/></testcase>
<testcase name="test_matches_the_oracle[mask_topk_bits-auto-cuda-float32-b]"><error/></testcase>
<testcase name="test_matches_the_oracle[mask_count-auto-cuda-float32-a]"><skipped/></testcase>
<testcase name="test_errors[mask_linear-1]"><failure/></testcase>
</testsuite></testsuites>"""


def test_the_gate_reads_what_the_contract_suite_says(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert gate.judge([report], ["mask_topk", "mask_topk_bits", "mask_count"]) == {
        "mask_topk_bits": "2 contract tests of mask_topk_bits fail",
        "mask_count": "no contract test of mask_count ran",
    }
    assert gate.red_ops([], "cuda", 1) == {}


def test_a_gate_that_does_not_end_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = {False: "the gate took more than 1 s", True: "a process of the gate died"}
    for ended, sentence in sentences.items():
        outcome = Outcome([], "red", ended)
        monkeypatch.setattr(gate, "run_pytest", lambda *_, outcome=outcome: outcome)
        assert gate.red_ops(["mask_topk"], "cuda", 1) == {"mask_topk": sentence}


TESTS = """
import time, pytest
@pytest.mark.parametrize("word", ["a-1", "a-2", "b-1", "b-2", "c-1", "d-1", "e-1", "f-1"])
def test_words(word):
    assert word != "c-1"
def test_alone():
    pass
def test_long():
    time.sleep({})
"""


def test_shards_run_every_test_once(tmp_path: Path) -> None:
    """Tests of one group in one process; what fails in one of them is red."""
    file = tmp_path / "test_words.py"
    file.write_text(TESTS.format(0))
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    outcome = run_pytest([str(file)], 60, tmp_path, 3)
    assert (outcome.status, outcome.ended, len(outcome.reports)) == ("red", True, 3)
    names = [
        [case.get("name") for case in ElementTree.parse(report).iter("testcase")]
        for report in outcome.reports
    ]
    assert sum(map(len, names)) == len(set().union(*names)) == 10
    assert sum("test_words[a-1]" in own and "test_words[a-2]" in own for own in names) == 1
    chosen = [str(file), "-k", "alone"]
    assert run_pytest(chosen, 60, tmp_path, 3).status == "green"
    assert run_pytest([*chosen, "-k", "nobody"], 60, tmp_path, 2).status == "no test was selected"


def test_shards_that_take_too_long_report_what_they_found(tmp_path: Path) -> None:
    file = tmp_path / "test_words.py"
    file.write_text(TESTS.format(600))
    outcome = run_pytest([str(file)], 8, tmp_path, 1)
    assert not outcome.ended
    cases = list(ElementTree.parse(outcome.reports[0]).iter("testcase"))
    assert {case.get("name") for case in cases} >= {"test_alone", "test_words[f-1]"}


@pytest.mark.slow
def test_the_gate_runs_the_contract() -> None:
    assert gate.red_ops(["mask_count"], "cpu", 300) == {}


def test_red_ops_keep_their_suites_from_running(tmp_path: Path) -> None:
    red = {"mask_topk": "1 contract tests of mask_topk fail"}
    worker.work(job_of(tmp_path, red), Console(quiet=True))
    (file,) = tmp_path.glob("*/*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["status"] for row in rows] == [f"not run: {red['mask_topk']}"] * 2
    assert {row["date"] for row in rows} == {"today"}


# Contenders do what they say


def test_two_of_four_by_hand() -> None:
    weight = torch.tensor([[3.0, -4, 1, 2, 0, 5, -7, 6]])
    assert semi_structured.two_of_four(weight).tolist() == [[3.0, -4, 0, 0, 0, 0, -7, 6]]


def test_wrong_results_are_no_speed() -> None:
    right = torch.randn(8, 8)
    semi_structured.check(right * 1.001, right)
    for bad in (right * 1.1, right.t(), right * float("nan")):
        with pytest.raises(WrongResultError, match="relative error"):
            semi_structured.checked(lambda bad=bad: bad, right)


def test_cusparselt_rows(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for torch's calls: numbers 0 to 2 exist, 1 computes nonsense."""

    def multiply(
        packed: torch.Tensor, x: torch.Tensor, alg_id: int = 0, transpose_result: bool = False
    ) -> torch.Tensor:
        if alg_id > 2:
            raise RuntimeError("invalid value")
        y = packed @ x * (3 if alg_id == 1 else 1)
        return y.t() if transpose_result else y

    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: weight)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda packed, x: 2)
    (case, *_) = semi_structured.cases(True)
    session.run("semi_structured", [case])
    rows = {row["variant"]: row for row in rows_of(session)}
    assert list(rows) == [
        *("cusparselt_1", "dense", "cusparselt_0", "cusparselt_2"),
        *("cusparselt_search", "cusparselt_search_row_major", "cusparselt_best"),
    ]
    assert rows["cusparselt_1"]["status"].startswith("wrong: ")
    best = rows["cusparselt_best"]
    assert best["searched"] == 2
    assert rows[best["algorithm"]]["p50_ms"] == best["p50_ms"]


def test_torch_sparse_computes_the_product() -> None:
    x, weight = torch.randn(5, 32), torch.randn(48, 32)
    mask = torch_sparse.block_mask((48, 32), 16, 0.5, CPU)
    assert mask.float().mean() == 0.5
    kept = weight * mask
    right = x @ kept.t()
    torch.testing.assert_close(torch_sparse.torch_bsr(x, kept, 16)(), right)
    torch.testing.assert_close(torch_sparse.torch_csr(x, kept)(), right)


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_topk_rival_keeps_the_largest(kind: str) -> None:
    scores = topk.make_scores(1000, kind, CPU)
    right = scores >= scores.sort().values[-100]
    kept = topk.by_topk(scores, 100)()
    assert int(kept.sum()) == 100
    assert not (kept & ~right).any()
    assert topk.fitting(10**9, CPU) == 10**9


def test_sparse_twin_keeps_blocks() -> None:
    dense = block.network((64, 128, 64), nn.Linear)
    twin = block.sparse_twin(dense, 16)
    assert [type(layer) for layer in twin] == [SparseLinear, nn.GELU, SparseLinear]
    assert twin[0].format.block_shape == (16, 16)
    assert twin[0].density == pytest.approx(0.1, abs=0.02)


def test_useful_operations_by_hand() -> None:
    works = block._works(8, (4, 16, 4), "forward_backward")
    assert works["dense"].flops == 3 * 2 * 8 * (4 * 16 + 16 * 4)
    assert works["sparsekern_bsr"].flops == pytest.approx(0.1 * works["dense"].flops)
    moved = masked_adamw.works(1000, 0.1)
    touched = 1 - 0.9**8  # of every eight weights 24 bytes are read or written, 4 written anyway
    assert moved[optimizer.MASKED].bytes == pytest.approx(24_000 * touched + 4_000 + 125)
    assert moved[optimizer.RIVAL].bytes == 46_000
    assert moved[optimizer.COMPACT].bytes == pytest.approx(2_800)
    half = masked_adamw.works(1000, 0.5)[masked_adamw.COMPACT_STATE].bytes
    assert half == pytest.approx(8_000 + 8_000 * 255 / 256 + 4_000 + 125)
    assert shapes.flops((2, 3, 5)) == 60
    size = step.Size(depth=1, width=2, heads=1, batch=3, tokens=4)
    assert step.flops(size) == 3 * (2 * 12 * 4 * 12 + 4 * 12 * 4 * 2)


def test_step_makes_the_mlps_sparse_alone() -> None:
    dense = step.Encoder(step.TINY)
    x = torch.randn(2, 8, 32)
    made: list[torch.optim.Optimizer] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.AdamW(parameters, lr=1e-3))
        return made[-1]

    step.sparse_step(dense, step.TINY, x, make)()
    held = {p.shape for group in made[0].param_groups for p in group["params"]}
    assert torch.Size([128, 32]) not in held  # of the MLP, now blocks
    assert torch.Size([32, 32]) in held  # of attention


def test_the_kernel_alone_takes_the_optimisers_step() -> None:
    case = optimizer.Case("adamw", 1000, 0.5)
    masked_adamw.kernel(case, CPU, triton=False)()
    with pytest.raises(NotImplementedError, match="Triton kernels run on CUDA devices. Got cpu"):
        masked_adamw.kernel(case, CPU, triton=True)


def test_never_slower_verdict() -> None:
    def times(dense: float, again: float, plan: float) -> dict[str, Times]:
        named = {"dense": dense, "dense_again": again, "plan": plan}
        return {name: Times(s, s, s, 7) for name, s in named.items()}

    assert not never_slower.lost(times(1.0, 1.0, 1.02))
    assert never_slower.lost(times(1.0, 1.0, 1.05))
    assert not never_slower.lost(times(1.0, 1.1, 1.05))  # noise explains it


# Time


def test_the_stopwatch_takes_events_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the device: the L2 is emptied, the head start given, then events."""
    did: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            did.append("record")

        def synchronize(self) -> None:
            did.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 2.5

    class Properties:
        L2_cache_size = 1 << 20

    class Cache:
        def zero_(self) -> None:
            did.append("empty the cache")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: did.append("idle"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: did.append("head start"))
    monkeypatch.setattr(torch, "empty", lambda size, **_: Cache())
    cuda = torch.device("cuda")
    cold = stopwatch.Stopwatch(cuda, cold=True, ahead=True)
    assert cold(lambda: did.append("run")) == 2.5e-3
    assert did == ["idle", "empty the cache", "head start", "record", "run", "record", "wait"]
    did.clear()
    assert stopwatch.Stopwatch(cuda, cold=False, ahead=False)(lambda: did.append("run")) == 2.5e-3
    assert did == ["idle", "record", "run", "record", "wait"]


def test_machine_rates_are_positive() -> None:
    ceilings = machine.measure(CPU, tiny=True)
    assert min(ceilings.copy_gbps, ceilings.bf16_tflops) > 0


# Pages


def test_pages_say_unconfirmed_until_there_are_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.record.commit", lambda: "abc")
    lines = pages.goals(tmp_path).splitlines()
    assert lines[0] == "| work | goal | measured |"
    assert len(lines) == 2 + len(pages.GOALS)
    assert all(line.endswith("| unconfirmed |") for line in lines[2:])
    recorder = Recorder(tmp_path, "green", "a-gpu")
    row = {"suite": "gpu_masked_adamw", "variant": "masked", "density": 0.5, "status": "measured"}
    recorder.write(**row, of_copy=0.9, speedup_over_rival=2.0, tiny=True)
    assert pages.goals(tmp_path) == "\n".join(lines)  # tiny sizes say nothing
    recorder.write(**row, of_copy=0.87, speedup_over_rival=1.5, tiny=False)
    plan = {"suite": "gpu_never_slower", "status": "measured", "tiny": False}
    for speedup, lost in ((1.2, False), (0.9, True)):
        recorder.write(**plan, variant="plan", speedup_over_dense=speedup)
        recorder.write(**plan, variant="verdict", lost=lost)
    table = pages.goals(tmp_path)
    assert table.startswith("| work | goal | a-gpu |")
    assert "| 87% of copy bandwidth; 1.50x |" in table
    assert "| 0.90x at worst, 1 of 2 lost |" in table
    assert table.endswith("a-gpu: commit `abc`.")
    copy = {"op": "copy", "shape": [2**32], "status": "measured", "tiny": False}
    assert "| gpu, slow | unconfirmed |" in pages.tests(tmp_path)
    recorder.write(suite="gpu_tests", phase="gpu", status="green", passed=7, tiny=False)
    assert "| gpu | green, 7 passed |" in pages.tests(tmp_path)
    assert tuple(phase.name for phase in tests_run.PHASES) == pages.PHASES
    recorder.write(suite="gpu_ceilings", gbps=3000.4, **copy)
    assert "| copy of 4 GiB, read plus written | 3000 GB/s |" in pages.ceilings(tmp_path)


# Tests and build on the GPU machine


def test_phases_report_what_became_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests_run, "LEAST_S", 2.0)
    monkeypatch.setattr(tests_run, "REPORT_S", 20.0)
    (tmp_path / "test_good.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    skipped = "import pytest\ndef test_one(): pytest.skip('no')\n"
    (tmp_path / "test_skipped.py").write_text(skipped)
    (tmp_path / "test_bad.py").write_text("def test_one(): assert False\n")
    slow = "import time\ndef test_zero(): {}\ndef test_one(): time.sleep(60)\n"
    (tmp_path / "test_slow.py").write_text(slow.format("pass"))
    (tmp_path / "test_slow_and_bad.py").write_text(slow.format("assert False"))
    plain = ("-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", "/dev/null")

    def phase(name: str, *more: str) -> tests_run.Phase:
        return tests_run.Phase(name, (str(tmp_path / f"test_{name}.py"), *plain, *more), False)

    recorder = Recorder(tmp_path / "results", "tests")
    good = tests_run.run((phase("good"),), time.time() + 60, recorder)
    assert good
    assert not tests_run.run((phase("bad"),), time.time() + 60, recorder)
    assert not tests_run.run((phase("good", "-k", "none"),), time.time() + 60, recorder)
    assert tests_run.run((phase("good"), phase("slow")), time.time() + 28, recorder)
    assert not tests_run.run((phase("slow_and_bad"),), time.time() + 25, recorder)
    assert not tests_run.run((phase("good"),), time.time(), recorder)  # the first must be green
    assert not tests_run.run((phase("skipped"),), time.time() + 60, recorder)
    rows = [json.loads(line) for line in recorder.path.read_text().splitlines()]
    status = [row["status"] for row in rows]
    assert status[:3] == ["green", "red", "no test was selected"]
    assert status[3:5] == ["green", "not finished"]
    assert status[5:7] == ["red, not finished", "not run: the budget was spent"]
    assert status[7:] == ["red, nothing passed"]
    assert [row.get("passed") for row in rows[:2]] == [2, 0]
    assert rows[1]["failed"] == 1
    assert (rows[4]["passed"], rows[5]["failed"]) == (1, 1)  # not what was interrupted


def test_phases_select_by_op_and_device() -> None:
    (triton,) = [phase for phase in tests_run.PHASES if phase.environment]
    assert triton.arguments[-1] == "cuda- and matches_the_oracle and (update_)"
    assert triton.environment == (("SPARSEKERN_CUDA", "0"),)


def test_files_with_marked_tests_are_found() -> None:
    found = {Path(path).name for path in tests_run.marked()}
    assert {"test_modules.py", "test_training.py", "test_large.py", "test_sanitizer.py"} <= found


def test_a_device_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.BadParameter, match="Expected a CUDA device. Got none that torch"):
        tests_run.main()


def test_missing_libraries_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def record(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 1)

    for family in ("cpu", "cuda"):
        (tmp_path / "csrc" / family).mkdir(parents=True)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "nvcc", lambda: None)
    monkeypatch.setattr(build.subprocess, "run", record)
    assert build.missing() == [build.CPU]
    monkeypatch.setattr(build, "nvcc", lambda: "/cuda/bin/nvcc")
    assert build.missing() == [build.CPU, build.CUDA]
    build.main()
    assert len(ran) == 1  # configuring failed
    assert "-DCMAKE_CUDA_COMPILER=/cuda/bin/nvcc" in ran[0]
    assert "failed; going on without" in capsys.readouterr().out
    (tmp_path / "build").mkdir()
    for name in (build.CPU, build.CUDA):
        (tmp_path / "build" / name).touch()
    build.main()
    assert "there already" in capsys.readouterr().out


def test_a_tree_without_git_names_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.record import commit

    def no_git(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert commit() == "unknown"
    monkeypatch.setenv("SPARSEKERN_COMMIT", "abc")
    assert commit() == "abc"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_shares_its_time_out(tmp_path: Path) -> None:
    """`make gpu` with a stand-in for python: what is called, and for how long each may run."""
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(f'#!/bin/sh\necho "$@" >> {said}\nexit 0\n')
    python.chmod(0o755)
    subprocess.run(["make", "gpu", f"PYTHON={python}"], cwd=ROOT, check=True, capture_output=True)
    calls = [line for line in said.read_text().splitlines() if line != "-m bench.gpu.build"]
    assert [line.split()[1] for line in calls] == ["tests.gpu.run", *["bench.gpu.run"] * 2]
    seconds = [int(re.findall(r"--budget-s (\d+)", line)[0]) for line in calls]
    for got, most in zip(seconds, (204, 170, 510), strict=True):
        assert most - 30 < got <= most
    assert [line.split()[-1] for line in calls[1:]] == ["all-ceilings", "all-suites"]
    subprocess.run(
        ["make", "gpu-bench", f"PYTHON={python}", "SUITES=block topk", "BUDGET_S=9"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    last = said.read_text().splitlines()[-1]
    assert last.startswith("-m bench.gpu.run --results bench/results --budget-s ")
    assert last.endswith(" block topk")


@pytest.mark.slow
def test_everything_is_collected_without_pydantic() -> None:
    """As on a machine that lends its GPU and no more."""
    code = (
        "import sys, pytest; sys.modules['pydantic'] = None; "
        "sys.exit(pytest.main(['--collect-only', '-q', 'tests', '-m', 'gpu']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]
