"""Description of the machine that figures were measured on."""

import platform
import re
from pathlib import Path

from common.cpus import usable_cpus


def machine() -> str:
    """CPU model, usable CPUs, memory, operating system and Python version."""
    cpu = platform.processor() or platform.machine()
    memory = ""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = found[1] if found else cpu
        kib = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
        memory = f", {int(kib[1]) / 2**20:.0f} GiB" if kib else ""
    except OSError:
        pass
    return (
        f"{cpu}, {usable_cpus()} CPUs{memory}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )
