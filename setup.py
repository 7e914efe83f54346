"""Builds the one extension module, ``diffstategrad._core``.

Switches, from the environment:

    DSG_DEBUG=1             -O0 -g, assertions on
    DSG_SANITIZE=address    any list gcc's -fsanitize takes; run Python with its runtime
                            preloaded
    DSG_COVERAGE=1          gcov counters
"""

import os
import shutil
import subprocess
from glob import glob

from setuptools import Extension, setup

SYSTEM_PACKAGES = {
    "openblas": "libopenblas-dev",
    "lapacke": "liblapacke-dev",
    "fftw3": "libfftw3-dev",
    "fftw3f": "libfftw3-dev",
}


def pkg_config(*args):
    result = subprocess.run(["pkg-config", *args], capture_output=True, text=True)
    return result.stdout.split() if result.returncode == 0 else None


def system_libraries():
    """Compiler and linker flags, or one sentence about what is missing."""
    if not shutil.which("pkg-config"):
        raise SystemExit(
            "diffstategrad needs pkg-config to find its libraries: "
            "apt-get install pkg-config "
            + " ".join(sorted(set(SYSTEM_PACKAGES.values())))
        )
    missing = [name for name in SYSTEM_PACKAGES if pkg_config("--exists", name) is None]
    if missing:
        raise SystemExit(
            f"diffstategrad needs {', '.join(missing)}, which pkg-config misses: "
            "apt-get install "
            + " ".join(sorted({SYSTEM_PACKAGES[name] for name in missing}))
        )
    names = list(SYSTEM_PACKAGES)
    return pkg_config("--cflags", *names), pkg_config("--libs", *names)


def version():
    with open("pyproject.toml") as f:
        for line in f:
            if line.startswith("version = "):
                return line.split('"')[1]
    raise SystemExit("pyproject.toml names no version")


def core_extension():
    cflags, libs = system_libraries()
    compile_args = ["-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra"]
    compile_args += ["-Wno-missing-field-initializers"]
    link_args = []
    if os.environ.get("DSG_DEBUG"):
        compile_args += ["-O0", "-g", "-UNDEBUG"]
    else:
        compile_args += ["-O3", "-ffp-contract=fast", "-fno-math-errno"]
        compile_args += ["-fno-trapping-math"]
    if sanitize := os.environ.get("DSG_SANITIZE"):
        compile_args += [f"-fsanitize={sanitize}", "-g", "-DDSG_NO_CLONES"]
        link_args += [f"-fsanitize={sanitize}"]
    if os.environ.get("DSG_COVERAGE"):
        compile_args += ["--coverage", "-O0", "-DDSG_NO_CLONES"]
        link_args += ["--coverage"]
    return Extension(
        "diffstategrad._core",
        sources=sorted(glob("csrc/src/*.c") + glob("csrc/bind/*.c")),
        depends=glob("csrc/**/*.h", recursive=True),
        include_dirs=["csrc/include", "csrc/src"],
        define_macros=[("DSG_VERSION", f'"{version()}"'), ("_GNU_SOURCE", None)],
        extra_compile_args=[*cflags, *compile_args],
        extra_link_args=[*libs, "-lpthread", "-lm", *link_args],
    )


setup(ext_modules=[core_extension()])
