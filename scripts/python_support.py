"""What the scripts about Python share: interpreters, packages, namespaces, and bounds in time.

Everything happens in mount, IPC and PID namespaces of its own with a fresh tmpfs on /dev/shm and a
home directory that is thrown away. The script itself is the first process in there, so that
nothing outlives it, and outside there is one process that ends all of it when its time is over.
"""

import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
INSIDE = "RTRACK_SCRIPT_INSIDE"
# Seconds. Builds and installations have to do with networks and compilers, the rest does not.
PATIENCE, INSTALLATION, BUILD = 60, 240, 900
# What the environment has to keep for pip and cargo to work; nothing of PYTHON*.
KEPT = re.compile(r"PATH|LANG|LC_.*|PIP_.*|UV_.*|SSL_.*|REQUESTS_.*|(?i:.*_proxy)|CARGO_.*|RUSTUP_.*|TMPDIR")


class Failed(Exception):
    """Something that a check needs did not happen, or is not as it has to be."""


# ----------------------------------------------------------------------------------- commands


class Done:
    """How a command ended and what it said."""

    def __init__(self, command, code, out, err):
        self.command, self.code, self.out, self.err = command, code, out, err

    def expect(self, code=0):
        """The same, if it ended so; Failed otherwise."""
        if self.code != code:
            said = (self.err + self.out).strip()[-1500:]
            shown = " ".join(map(str, self.command))[:300]
            raise Failed(f"{shown} ended with {self.code}, not {code}: {said}")
        return self


def run(command, timeout=PATIENCE, env=None, cwd=None, stdin=subprocess.DEVNULL, group_ends=True,
        **more):
    """Runs a command in a process group of its own, which ends with it, unless what outlives it
    is what matters."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            list(map(str, command)), stdin=stdin, stdout=out, stderr=err, cwd=cwd,
            env=environment() if env is None else env, start_new_session=True, **more,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = f"no end within {timeout} s"
            group_ends = True
        finally:
            if group_ends:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Done(command, code, *texts)


def environment(**more):
    """A small environment with the temporary home, and these variables; None takes one out."""
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    kept.update(HOME=os.environ["HOME"], PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    kept.update(more)
    return {name: str(value) for name, value in kept.items() if value is not None}


def wait_for(what, condition, patience=PATIENCE):
    """Waits until the condition is true; its value."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise Failed(f"waited for {what} for {patience} s in vain")


# ---------------------------------------------------------------------------------- namespaces


def enter(limit):
    """Runs the rest of the script inside namespaces; returns there only, with a directory for
    whatever it makes. Outside, it ends the process: with the status of the inner one, or with 1
    when `limit` seconds are over."""
    if os.environ.get(INSIDE):
        return settle(json.loads(os.environ.pop(INSIDE)))
    work = tempfile.mkdtemp(prefix="rtrack-python-")
    told = {"work": work, "pid": os.readlink("/proc/self/ns/pid"), "home": os.environ.get("HOME"),
            "shm": os.stat("/dev/shm").st_dev}
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *user, "--mount", "--ipc", "--pid", "--fork", "--kill-child=KILL",
               "--mount-proc", "--propagation", "private"]
    try:
        if run([*command, "true"], env=dict(os.environ)).code != 0:
            print("SKIPPED everything: no namespaces are to be had here")
            sys.exit(0)
        # Whatever becomes of this one, the other ends with it, and with that all that is inside.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        command = ["setpriv", "--pdeathsig", "KILL", *command]
        inner = subprocess.Popen([*command, sys.executable, *sys.argv], stdin=subprocess.DEVNULL,
                                 env={**os.environ, INSIDE: json.dumps(told)})
        try:
            code = inner.wait(limit)
        except subprocess.TimeoutExpired:
            print(f"FAILED  it did not end within {limit} s", flush=True)
            code = 1
        finally:
            inner.kill()
            inner.wait()
        sys.exit(code if code >= 0 else 1)
    finally:
        for _ in range(50):  # what is inside needs a moment to die
            shutil.rmtree(work, ignore_errors=True)
            if not os.path.exists(work):
                break
            time.sleep(0.1)


def settle(told):
    """The inner half: /dev/shm, a home directory, and proof that they are our own."""
    if os.getpid() != 1 or os.readlink("/proc/self/ns/pid") == told["pid"]:
        sys.exit("this is not a PID namespace of its own")
    run(["mount", "-t", "tmpfs", "-o", "size=4g,mode=1777", "tmpfs", "/dev/shm"]).expect()
    if os.stat("/dev/shm").st_dev == told["shm"] or os.listdir("/dev/shm"):
        sys.exit("/dev/shm is still the machine's own")
    work = Path(told["work"])
    home = work / "home"
    home.mkdir()
    # Found before the home directory is another one.
    for name, directory in (("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup"),
                            ("PYENV_ROOT", ".pyenv")):
        if told["home"] and Path(told["home"], directory).is_dir():
            os.environ.setdefault(name, str(Path(told["home"], directory)))
    for name in ("RTRACK_DISABLE", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"):
        os.environ.pop(name, None)
    # TMPDIR may lie on something else; what is made here ends with the script.
    os.environ.update(HOME=str(home), TMPDIR=str(work))
    tempfile.tempdir = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return work


def kill_all():
    """SIGKILL for every process in here but this one, which is the first of the namespace."""
    if os.getpid() != 1:
        raise RuntimeError("not the first process of a PID namespace")
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    bury()


def bury():
    """Takes the statuses of children that others left behind."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def shm():
    """What lies in /dev/shm."""
    return sorted(os.listdir("/dev/shm"))


def clean_shm():
    """Empties it: it is the script's own."""
    for entry in Path("/dev/shm").iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


# ------------------------------------------------------------------------------------- Pythons


class Python:
    """A CPython."""

    def __init__(self, facts):
        self.path = facts["path"]
        self.version = tuple(facts["version"])
        self.base = facts["base"]
        self.has_pip = facts["pip"]
        self.has_tests = facts["tests"]

    def __str__(self):
        return ".".join(map(str, self.version))


@functools.lru_cache(maxsize=None)
def pythons():
    """The newest CPython of each version from 3.8 on, oldest first."""
    ask = (
        "import json, sys, os, importlib.util as util; find = util.find_spec; print(json.dumps(dict("
        "name=sys.implementation.name, version=sys.version_info[:3], path=sys.executable, "
        "base=sys.prefix == sys.base_prefix, "
        "pip=all(map(find, ('venv', 'ensurepip', 'multiprocessing.shared_memory'))), "
        "tests=bool(find('test') and find('test._test_multiprocessing')))))"
    )
    paths = []
    root = os.environ.get("PYENV_ROOT")
    paths += Path(root).glob("versions/*/bin/python3") if root else []
    for directory in map(Path, os.get_exec_path()):
        with contextlib.suppress(OSError):
            paths += (path for path in directory.iterdir()
                      if re.fullmatch(r"python3(\.\d+)?", path.name) and "shims" not in path.parts)
    found = {}
    for path in paths:
        with contextlib.suppress(ValueError, OSError):
            done = run([path, "-I", "-c", ask], timeout=20)
            if done.code != 0:
                continue
            facts = json.loads(done.out)
            python = Python(facts)
            known = found.get(python.version[:2])
            newer = known is None or known.version < python.version
            right = facts["name"] == "cpython" and python.version >= (3, 8) and python.has_pip
            if right and python.base and newer:
                found[python.version[:2]] = python
    return [found[version] for version in sorted(found)]


def two_of(found):
    """The oldest and the newest."""
    return found if len(found) < 3 else [found[0], found[-1]]


class Environment:
    """A virtual environment."""

    def __init__(self, python, place, *options):
        self.version, self.place = python.version, Path(place)
        run([python.path, "-m", "venv", *options, place], timeout=INSTALLATION).expect()
        self.python = self.place / "bin" / "python"
        self.site = next(self.place.glob("lib/python*/site-packages"))

    def pip(self, *arguments):
        """pip, which may use the network."""
        pip = [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        return run([*pip, *arguments], timeout=INSTALLATION, env=environment(PIP_RETRIES="2"))

    def install(self, *packages):
        """Installs them."""
        self.pip("install", "--prefer-binary", *packages).expect()

    def install_into(self, prefix, wheel):
        """Installs a wheel into another environment, or a home directory, of the same Python."""
        self.pip("install", "--no-index", "--no-deps", "--ignore-installed", "--no-warn-script-location",
                 "--prefix", prefix, wheel).expect()

    def run(self, *arguments, env=None, **more):
        """Its Python with these arguments."""
        return run([self.python, *arguments], env=env, **more)

    def rtrack(self, *arguments, **more):
        """`python -m rtrack`."""
        return self.run("-m", "rtrack", *arguments, **more)


def build_wheel(work):
    """The package as pip gets it, from this checkout and what cargo has built of it already."""
    given = os.environ.get("RTRACK_WHEEL")
    if given:
        return Path(given)
    tools = Environment(pythons()[-1], work / "tools")
    tools.install("maturin>=1.9,<2")
    print("building the wheel", file=sys.stderr, flush=True)
    out = work / "wheels"
    command = [tools.place / "bin" / "maturin", "build", "--profile", "dev", "--locked", "--out", out]
    variables = environment(PATH=f"{tools.place / 'bin'}:{os.environ['PATH']}")
    with open(REPOSITORY / "pyproject.toml") as lock:  # maturin moves the program: one at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(command, timeout=BUILD, cwd=REPOSITORY, env=variables).expect()
    return next(out.glob("rtrack-*.whl"))


class Counter:
    """A program in place of rtrack that notes each launch of the daemon and becomes rtrack."""

    def __init__(self, program, place):
        self.log = Path(place).with_suffix(".launches")
        self.path = Path(place)
        self.path.write_text(
            "#!/bin/sh\n"
            f'[ "$1" = daemon ] && echo "$@" >>{self.log}\n'
            f'exec {program} "$@"\n'
        )
        self.path.chmod(0o755)
        self.seen = 0

    def new(self):
        """The launches since the last call, each as its arguments."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        new, self.seen = lines[self.seen:], len(lines)
        return new


# ------------------------------------------------------------------------------------- reports


class Report:
    """One line a check, and the sum at the end."""

    def __init__(self):
        self.passed = self.failed = 0
        self.began = time.monotonic()

    def check(self, name, function, *arguments):
        """Runs one check; whatever it left behind is killed."""
        began = time.monotonic()
        try:
            said = function(*arguments)
        except Exception as error:  # whatever it is, the others run
            self.failed += 1
            where = ""
            if not isinstance(error, Failed):
                trace = error.__traceback__
                while trace.tb_next is not None:
                    trace = trace.tb_next
                where = f" (line {trace.tb_lineno})"
            print(f"FAILED  {name}: {type(error).__name__}{where}: {error}", flush=True)
        else:
            self.passed += 1
            what = f": {said}" if said else ""
            print(f"ok      {name}{what} [{time.monotonic() - began:.1f} s]", flush=True)
        finally:
            kill_all()
            clean_shm()

    def end(self, ran):
        """Says what ran; the exit status. That nothing ran is a failure."""
        print(f"{self.passed} passed, {self.failed} failed, with {ran}, "
              f"in {time.monotonic() - self.began:.0f} s", flush=True)
        return 1 if self.failed or not self.passed else 0
