"""Setup of the process before JAX is imported: huge pages of memory and JAX's environment variables."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Replaces this process by the same command with its memory in huge pages, if the system supports them.

    Without them, a training step on a CPU takes 1.1 to 1.2 times as long, and scoring a batch 1.3 times
    (benchmarks/results). A restart is needed because the C library reads the setting only when a process starts. If the
    user has set GLIBC_TUNABLES, it is left unchanged.
    """
    if "GLIBC_TUNABLES" in os.environ or not _offers_huge_pages():
        return
    print(f"memory in huge pages: GLIBC_TUNABLES={_HUGE_PAGES} (--no-huge-pages leaves it out)", file=sys.stderr)
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": _HUGE_PAGES})


def _offers_huge_pages() -> bool:
    """Returns whether the system offers huge pages on request and its C library can request them."""
    try:
        name, version = os.confstr("CS_GNU_LIBC_VERSION").split()  # type: ignore[union-attr]
        return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35) and "[madvise]" in _THP.read_text()
    except (AttributeError, ValueError, OSError):  # another system
        return False


def set_defaults() -> None:
    """Sets environment variables that JAX reads when it is imported, unless the user has set them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # keeps XLA's log off the terminal
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ganomaly_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
