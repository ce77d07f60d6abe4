"""Starts a program on two gloo processes and reads what each of them found."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Findings:
    """What the processes wrote down, check by check."""

    def __init__(self, folder, log):
        self.folder, self.log = folder, log

    def of(self, check):
        """One finding for each process; fails with the program's output if there is none."""
        files = [self.folder / f"{check}.{rank}.json" for rank in range(2)]
        if not all(file.exists() for file in files):
            pytest.fail(f"{check} did not come to its end:\n{self.log[-4000:]}")
        findings = [json.loads(file.read_text()) for file in files]
        for finding in findings:
            if "failure" in finding:
                pytest.fail(f"{check} failed:\n{finding['failure']}")
        return findings


def on_two_processes(program, folder, limit=60):
    """Runs programs/<program>.py; ``limit`` is in seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    command += [str(HERE / "programs" / f"{program}.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        log, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        log, _ = process.communicate()
        log += f"\nIt took longer than {limit} s."
    return Findings(folder, log)
