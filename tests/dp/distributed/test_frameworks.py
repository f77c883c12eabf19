"""Accelerate, Lightning and the command line train on many ranks."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dp


ROOT = Path(__file__).parents[3]


def spent_by_one_process():
    """Epsilon of the same plan, by the accountant alone."""
    _, plan, _ = importlib.import_module("ranks_frameworks").demo()
    return plan.guarantee().epsilon


@pytest.mark.parametrize("framework", ["accelerate", "lightning"])
def test_a_framework_trains_on_many_ranks_for_the_epsilon_of_one(ranks, framework):
    """All ranks end with the same weights and epsilon, in DDP."""
    results = ranks(f"ranks_frameworks:by_{framework}")

    assert results == [results[0]] * ranks.size
    assert results[0]["wrapper"] == "DistributedDataParallel"
    assert results[0]["steps"] == 3
    assert results[0]["epsilon"] == spent_by_one_process()


def test_accelerate_launch_starts_the_ranks(tmp_path):
    """Its own launcher, two processes, nothing of ours around it."""
    script = Path(__file__).with_name("ranks_frameworks.py")
    # Its --cpu starts one process, unless mpirun does; this is torchrun underneath.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *launch, "--main_process_port=0", str(script), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert len(results) == 2
    assert results[0] == results[1]
    assert results[0]["epsilon"] == spent_by_one_process()


def test_the_command_line_trains_under_torchrun(unjoined_ranks, tmp_path):
    """One rank speaks and writes the report; what it states is the run of all."""
    folder = tmp_path / "report"
    codes = unjoined_ranks(
        "ranks_frameworks:command_line", folder=str(folder), options=["--compare"]
    )

    assert codes == [None, None]
    certificate = folder / "certificate.json"
    assert json.loads(certificate.read_text())["steps"] == 2
    assert dp.verify(certificate, quick=True).ok


def test_ranks_share_a_table(unjoined_ranks, tmp_path):
    """One rank releases the statistics, and each takes its share of every step."""
    folder, data = tmp_path / "report", tmp_path / "table.csv"
    rows = "".join(f"{i / 7},{['no', 'yes'][i % 2]}\n" for i in range(41))
    data.write_text(f"x,class\n{rows}")
    codes = unjoined_ranks(
        "ranks_frameworks:command_line",
        folder=str(folder),
        data=str(data),
        options=["--target", "class"],
    )
    certificate = dp.Certificate.from_json((folder / "certificate.json").read_text())

    assert codes == [None, None]
    assert [run.steps for run in certificate.runs] == [1, 2]
    assert dp.verify(certificate, quick=True).ok
