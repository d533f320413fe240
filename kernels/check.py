#!/usr/bin/env python3
"""Checks the committed PTX with NVIDIA's own tools, without a GPU.

1. Renews kernels/ptx with nvcc 13.0 from PyPI (through build.rs) and compares with what is committed.
2. Assembles every file with ptxas for all targets, and with ptxas 12.0, which proves that the lowered `.version`
   is true: drivers of the 525 series load it.
3. Refuses register spills and local memory, and compares docs/kernel-resources.md with what ptxas says.

`--write` renews kernels/ptx and the document instead of comparing. Needs Python, cargo, and PyPI for the first run: the
tools (300 MB) go into target/cuda.
"""

import argparse
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PTX = ROOT / "kernels" / "ptx"
DOCUMENT = ROOT / "docs" / "kernel-resources.md"
TOOLS = ROOT / "target" / "cuda"
TARGETS = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
# What ptxas 12.0 knows of them.
OLD_TARGETS = ["sm_80", "sm_86", "sm_89", "sm_90"]
PACKAGES = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
]
OLD_PACKAGES = ["nvidia-cuda-nvcc-cu12==12.0.*"]


def fail(message):
    sys.exit(f"kernels/check.py: {message}")


def install(name, packages, tool):
    """The path of `tool` (below site-packages) in a virtual environment that holds `packages`."""
    folder = TOOLS / name
    found = list(folder.glob(f"lib/python3*/site-packages/{tool}"))
    if not found:
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *packages], check=True)
        found = list(folder.glob(f"lib/python3*/site-packages/{tool}"))
    if not found:
        fail(f"{', '.join(packages)} did not bring {tool}")
    return found[0]


def renew(nvcc):
    environment = dict(os.environ, NVCC=str(nvcc), ENGINE_RENEW_PTX="1")
    if subprocess.run(["cargo", "check", "--quiet"], cwd=ROOT, env=environment).returncode != 0:
        fail("the kernels do not compile")


def assemble(ptxas, file, target):
    """What `ptxas -v` says of each kernel of a file: a list of (kernel, figures)."""
    command = [ptxas, f"-arch={target}", "-v", file, "-o", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        fail(f"{file.name} for {target}: {result.stderr.strip().splitlines()[0]}")
    kernels, name = [], None
    for line in result.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if any(int(number) for number in match.groups()):
                fail(f"{file.name} for {target}: {name} uses local memory: {line.strip()}")
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels.append((name, int(match[1]), int(shared[1]) if shared else 0))
    return kernels


def blocks_of(text):
    """Largest block of each kernel of a PTX text."""
    pattern = r"\.entry (\w+)\(.*?\)\s*\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?"
    found = re.finditer(pattern, text, re.S)
    return {m[1]: int(m[2]) * int(m[3] or 1) * int(m[4] or 1) for m in found}


def occupancy(registers, shared, threads):
    """Resident warps of the 64 that a multiprocessor of compute capability 8.0 has (CUDA Programming Guide, table of
    technical specifications; registers are given to warps in units of 256)."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // per_warp // warps
    by_shared = (164 << 10) // (shared + 1024)
    return min(by_registers, by_shared, 64 // warps, 32) * warps


def document(rows):
    lines = [
        "# What the kernels need",
        "",
        "As `ptxas -v` (CUDA 13.0) says, written by `python3 kernels/check.py --write` and compared in continuous",
        "integration. No kernel spills a register or has an array in local memory, on any of these targets.",
        "Shared memory is the static part; what a launcher adds stands in the kernel's header comment. Occupancy is",
        "that of compute capability 8.0 with the largest block the kernel is compiled for and static shared memory.",
        "",
        "| kernel | threads | shared | " + " | ".join(TARGETS) + " registers | occupancy |",
        "| --- | ---: | ---: | " + "---: | " * len(TARGETS) + "---: |",
    ]
    for kernel, threads, shared, registers in rows:
        share = occupancy(registers[0], shared, threads) / 64
        columns = " | ".join(str(count) for count in registers)
        lines.append(f"| `{kernel}` | {threads} | {shared} | {columns} | {share:.0%} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew kernels/ptx and the document")
    arguments = parser.parse_args()

    nvcc = install("13.0", PACKAGES, "nvidia/cu13/bin/nvcc")
    old_ptxas = install("12.0", OLD_PACKAGES, "nvidia/cuda_nvcc/bin/ptxas")
    committed = {path.name: path.read_text() for path in PTX.glob("*.ptx")}
    renew(nvcc)
    sources = {path.stem for path in (ROOT / "kernels").glob("*.cu")}
    renewed = {path.name: path.read_text() for path in PTX.glob("*.ptx")}
    if extra := sorted(name for name in renewed if Path(name).stem not in sources):
        fail(f"kernels/ptx/{extra[0]} has no source: remove it")
    if not arguments.write:
        for name, text in renewed.items():
            if committed.get(name) != text:
                fail(f"kernels/ptx/{name} is not what nvcc 13.0 makes: run python3 kernels/check.py --write")

    rows = []
    for name, text in sorted(renewed.items()):
        by_target = [assemble(nvcc.with_name("ptxas"), PTX / name, target) for target in TARGETS]
        for target in OLD_TARGETS:
            assemble(old_ptxas, PTX / name, target)
        threads = blocks_of(text)
        for versions in zip(*(sorted(kernels) for kernels in by_target)):
            kernel, _, shared = versions[0]
            if kernel not in threads:
                fail(f"{name}: {kernel} has no __launch_bounds__")
            rows.append((kernel, threads[kernel], shared, [registers for _, registers, _ in versions]))
    text = document(rows)
    if arguments.write:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        fail(f"{DOCUMENT.relative_to(ROOT)} is out of date: run python3 kernels/check.py --write")
    print(f"{len(rows)} kernels: renewed alike, assembled for {', '.join(TARGETS)} and by ptxas 12.0; no local memory")


main()
