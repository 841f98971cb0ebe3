"""`python -m rtrack`: makes this environment use rtrack's resource tracker, or undoes it."""

import argparse
import ast
import contextlib
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata

from rtrack import _hook

PTH = "rtrack.pth"
FIRST_LINE = "# Written by `python -m rtrack enable`; `python -m rtrack disable` removes it."
RECORD_LINE = "# rtrack: "

# Seconds, for a Python that does nothing.
PATIENCE = 30

# What every Python of the environment executes at its start, in one line. It does next to nothing: the
# finder waits for one of the modules by which a tracker is started, and leaves the import itself to
# the finders behind it. Where several directories have such a file, the first one wins.
STUB = (
    "import sys; _rtrack = {record}; "
    "'RtrackFinder' in [getattr(f, '__name__', '') for f in sys.meta_path] or "
    "sys.meta_path.insert(0, type('RtrackFinder', (), dict(record=_rtrack, find_spec="
    "lambda name, path=None, target=None, record=_rtrack: exec({code}, dict(name=name, "
    "record=record)) if name in {names} else None))) or "
    "[sys.meta_path[0].find_spec(n) for n in {names} if n in sys.modules]"
)

# What is executed where that fails, and compiled only there: the exception is passed on, or told.
FAILED = """\
library, trace = os.path.dirname(getattr(os, '__file__', '?')) + '/', error.__traceback__
while trace is not None:
    frame, trace = trace.tb_frame, trace.tb_next
    file = frame.f_code.co_filename
    if not (frame.f_code is code or file == record['hook'] or file.startswith('<frozen ')
            or file.startswith(library) and '-packages/' not in file):
        raise
try:
    sys.stderr.write('rtrack: %s cannot be used (%s), and Python\\'s own resource tracker is; '
                     'if rtrack was uninstalled, remove %s\\n'
                     % (record['hook'], type(error).__name__, record['pth']))
    sys.stderr.flush()
except BaseException:
    pass
"""

# What it executes then. It is compiled only then, which would be half of the cost otherwise. Nothing
# of its own may leave it, whatever became of the package since; a hook that ends or damages Python
# would be worse than none. But what a handler of a signal raises is the program's: signals wait until
# it is done, and an exception is passed on if code took part that is neither the hook's nor the standard
# library's, since another thread can take a signal nevertheless. For the same reason everything is
# put back again if that was not reached the first time.
#
# Finders are called with the lock of all imports held. To import anything there would wait for ever
# where another thread is importing that already, and waits for this lock: it is given back meanwhile,
# unless somebody further out holds it as well. `release` comes before it is taken again, since nobody
# knows whether it was given back.
LOAD = """\
import _imp, _signal, os, sys
mask, code = _signal.pthread_sigmask, sys._getframe().f_code
before = mask(_signal.SIG_BLOCK, ())
locked, restored = _imp.lock_held(), False
def release():
    try:
        _imp.release_lock()
        return True
    except RuntimeError:
        return False
hook = {'__name__': '_rtrack_hook', '__file__': record['hook']}
try:
    try:
        mask(_signal.SIG_BLOCK, _signal.valid_signals())
        if locked and release() and release():
            locked = False
            _imp.acquire_lock()
            _imp.acquire_lock()
        if 'install' not in record:
            from importlib.machinery import SourceFileLoader
            exec(SourceFileLoader('_rtrack_hook', record['hook']).get_code('_rtrack_hook'), hook)
            record['install'] = hook['install']
        record['install'](name, record)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        exec({failed})
    finally:
        if locked:
            release()
            _imp.acquire_lock()
        mask(_signal.SIG_SETMASK, before)
        restored = True
finally:
    if not restored:
        if locked:
            release()
            _imp.acquire_lock()
        mask(_signal.SIG_SETMASK, before)
""".replace("{failed}", ascii(FAILED))

TRACKERS = [f"{package}.resource_tracker" for package in (_hook.STDLIB, *_hook.LOKY)]


class Refused(Exception):
    """Why something cannot be done, for people."""


# ------------------------------------------------------------------------------------- places


def in_environment():
    """Whether this Python has site-packages of its own: a virtual environment, or conda's."""
    return sys.prefix != sys.base_prefix or os.path.isdir(os.path.join(sys.prefix, "conda-meta"))


def site_directories():
    """The directories whose .pth files this Python reads, the best one for ours first."""
    found = list(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        found.insert(1 if in_environment() else 0, site.getusersitepackages())
    known, result = set(), []
    for directory in found:
        if os.path.realpath(directory) not in known:
            known.add(os.path.realpath(directory))
            result.append(directory)
    return result


def own_directories():
    """Those whose .pth files are this environment's, or this Python's, and no wider one's."""
    return site_directories()[:1] if in_environment() else site_directories()


def read_record(directory):
    """What `enable` noted there, or None if there is no file. Refused: it is not ours."""
    text = read_text(directory)
    return None if text is None else parse_record(os.path.join(directory, PTH), text)


def read_text(directory):
    """The file's content, or None if there is none. Refused: it cannot be read."""
    path = os.path.join(directory, PTH)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None


def parse_record(path, text):
    """What `enable` noted in that text. Refused: it is not ours."""
    lines = text.split("\n")
    if lines[0] != FIRST_LINE:
        raise Refused(f"{path} was not written by `python -m rtrack enable`")
    try:
        record = ast.literal_eval(lines[1][len(RECORD_LINE):])
        return {key: record[key] for key in ("program", "version", "identity", "hook", "package",
                                             "pth", "created")}
    except (ValueError, KeyError, IndexError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise Refused(f"{path} is damaged") from None


def packages():
    """The installed distributions of this name, as (version, directory), the one in use first."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = []
    for distribution in metadata.distributions(name="rtrack"):
        place = os.path.abspath(str(distribution.locate_file("")))
        if (distribution.version, place) not in found:
            found.append((distribution.version, place))
    return sorted(found, key=lambda one: one[1] != here)


def program_of_package():
    """The `rtrack` that pip installed with this package."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    candidates = []
    for distribution in metadata.distributions(name="rtrack"):
        if os.path.abspath(str(distribution.locate_file(""))) == here:
            candidates += [str(distribution.locate_file(file)) for file in distribution.files or []
                           if file.name == "rtrack" and file.parent.name == "bin"]
    candidates.append(os.path.join(sysconfig.get_path("scripts"), "rtrack"))
    candidates.append(os.path.join(sysconfig.get_path("scripts", f"{os.name}_user"), "rtrack"))
    candidates.append(os.path.join(here, "bin", "rtrack"))  # pip install --target
    in_path = shutil.which("rtrack")
    candidates += [in_path] if in_path else []
    for candidate in candidates:
        if os.path.isfile(candidate):
            return os.path.abspath(candidate)
    raise Refused("no rtrack was installed with this package, and none is in PATH; "
                  "name one by --program PATH")


# -------------------------------------------------------------------------------------- enable


def enable(options):
    """Writes the file, and makes sure that Python still starts and reads it."""
    program = os.path.abspath(options.program) if options.program else program_of_package()
    try:
        known = _hook.identity(program)
        _hook.check(program, known)
        version = _hook.version(program)
        _hook.require_new_enough(program, version)
        try_out(program)
    except OSError as error:
        raise Refused(f"{program}: {error.strerror}") from None
    except _hook.NotUsable as error:
        raise Refused(str(error)) from None
    installed = packages()
    record = {
        "program": program, "version": version, "identity": known,
        "hook": os.path.abspath(_hook.__file__), "package": installed[0][0] if installed else "",
    }
    reasons = []
    for directory in own_directories():  # those that this Python's `disable` looks into
        try:
            path, before, ours = write(directory, record)
        except (OSError, Refused) as error:
            reasons.append(f"{directory}: {getattr(error, 'strerror', None) or error}")
            continue
        trouble = does_not_work(path)
        if trouble:
            if not is_still(path, ours):
                raise Refused(f"{path} was removed or written anew by somebody else meanwhile")
            undo(directory, before)
            raise Refused(f"{path} was taken back: {trouble}")
        for reason in reasons:
            say(f"note: not in {reason}")
        say(f"enabled by {path}")
        say(f"program {program}, version {version}")
        mention_others(directory)
        return 0
    raise Refused("nothing was enabled: " + "; ".join(reasons))


def try_out(program):
    """NotUsable: it does not come up as a tracker."""
    from multiprocessing import util

    reader, writer = os.pipe()
    try:
        options = _hook.recognise(
            ["python", "-c", f"from {_hook.STDLIB}.resource_tracker import main;main({reader})"],
            [reader],
        )
        spawn = getattr(util.spawnv_passfds, "__wrapped__", util.spawnv_passfds)
        pid = _hook.start(spawn, program, options, [2, reader])
    finally:
        os.close(reader)
        os.close(writer)
    os.waitpid(pid, 0)


def pth_text(record):
    """The whole file. ASCII only: what Python reads it with depends on version and locale."""
    literal = ascii(record)
    names = "{" + ", ".join(map(ascii, TRACKERS)) + "}"
    line = STUB.format(record=literal, code=ascii(LOAD), names=names)
    return f"{FIRST_LINE}\n{RECORD_LINE}{literal}\n{line}\n"


def write(directory, record):
    """Writes the file whole or not at all; its path, what was there before, and its identity."""
    path = os.path.join(directory, PTH)
    before = read_text(directory)
    known = None if before is None else parse_record(path, before)
    created = [] if known is None else known["created"]
    created = make_directories(directory) or created
    temporary = None
    try:
        number, temporary = tempfile.mkstemp(prefix=".rtrack-", dir=directory)
        with os.fdopen(number, "w", encoding="ascii") as file:
            file.write(pth_text({**record, "pth": path, "created": created}))
        umask = os.umask(0o022)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        ours = _hook.identity(temporary)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        remove_directories(created if known is None else [])
        raise
    return path, before, ours


def is_still(path, ours):
    """Whether the file at `path` is the one of that identity."""
    try:
        return _hook.identity(path) == ours
    except OSError:
        return False


def make_directories(directory):
    """Makes it and what is missing above it; what was made, the deepest first."""
    missing = []
    while not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for made, one in enumerate(reversed(missing)):
        try:
            os.mkdir(one)
        except OSError:
            remove_directories(missing[len(missing) - made:])
            raise
    return missing


def remove_directories(directories):
    """Removes those that are still empty."""
    for directory in directories:
        try:
            os.rmdir(directory)
        except OSError:
            return


def does_not_work(path):
    """Why a Python that is started now does not use the file at `path`, or None if it does."""
    # It answers through a pipe of its own: a sitecustomize may print, or close standard output.
    ask = ("import os, sys; os.write(int(sys.argv[1]), os.fsencode(next((finder.record['pth'] "
           "for finder in sys.meta_path if getattr(finder, '__name__', '') == 'RtrackFinder'), '')))")
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)  # what it has started may hold the other end
        command = [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", ask, str(writer)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, timeout=PATIENCE, pass_fds=[writer])
        os.write(writer, b"\0")  # there is something to read in any case
        used = os.fsdecode(os.read(reader, 65536).rstrip(b"\0"))
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Python does not start: {error}"
    finally:
        os.close(reader)
        os.close(writer)
    if done.returncode != 0:
        return f"Python does not start: {done.stderr.decode(errors='replace').strip()[-300:]}"
    if not used:
        return "Python does not read .pth files there"
    if os.path.realpath(used) != os.path.realpath(path):
        return f"{used} comes first; disable that one, or use it"
    return None


def undo(directory, before):
    """Puts back what was there before `write`."""
    if before is None:
        with contextlib.suppress(FileNotFoundError):  # somebody else removed it since
            record = read_record(directory)
            if record is not None:
                remove(directory, record)
    else:
        with open(os.path.join(directory, PTH), "w", encoding="ascii") as file:
            file.write(before)


def mention_others(used):
    """Says what else there is that may confuse."""
    for directory in site_directories():
        if os.path.realpath(directory) != os.path.realpath(used):
            if os.path.exists(os.path.join(directory, PTH)):
                say(f"note: there is also {os.path.join(directory, PTH)}")
    installed = packages()
    if len(installed) > 1:
        places = ", ".join(f"{version} in {place}" for version, place in installed)
        say(f"note: the package is installed more than once: {places}; the first one is used")


# ---------------------------------------------------------------------------- disable and status


def disable(options):
    """Removes what `enable` wrote for this environment, and nothing else."""
    found, troubles = False, []
    for directory in own_directories():
        path = os.path.join(directory, PTH)
        try:
            record = read_record(directory)
            if record is not None:
                found = True
                remove(directory, record)
                say(f"removed {path}")
        except Refused as error:
            found = True
            troubles.append(str(error))
        except FileNotFoundError:  # somebody else removed it at the same time
            say(f"{path} is gone already")
        except OSError as error:
            troubles.append(f"{path} cannot be removed: {error.strerror}")
    if not found:
        say("it was not enabled here")
    for directory in site_directories():
        path = os.path.join(directory, PTH)
        if directory not in own_directories() and os.path.exists(path):
            troubles.append(f"{path} still applies; it belongs to a wider environment, "
                            "whose own Python can disable it")
    if troubles:
        raise Refused("; ".join(troubles))
    return 0


def remove(directory, record):
    """Removes the file and the directories that were made for it and are empty again."""
    os.unlink(os.path.join(directory, PTH))
    remove_directories(record["created"])


def status(options):
    """Says what is enabled where, and whether this process would use it. 1: it would not."""
    active = next((finder for finder in sys.meta_path
                   if getattr(finder, "__name__", "") == "RtrackFinder"), None)
    in_use = active.record["pth"] if active else None
    found, why_not = False, None
    for directory in site_directories():
        path = os.path.join(directory, PTH)
        try:
            record = read_record(directory)
        except Refused as error:
            found, why_not = True, why_not or str(error)
            say(str(error))
            continue
        if record is None:
            continue
        found = True
        used = in_use is not None and os.path.realpath(in_use) == os.path.realpath(path)
        say(f"enabled by {path}{'' if used else ' (not used by this process)'}")
        trouble = state_of_program(record)
        if used:
            why_not = trouble
        if not os.path.exists(record["hook"]):
            say(f"hook    {record['hook']} is missing")
            why_not = f"{record['hook']} is missing" if used else why_not
    for version, place in packages():
        say(f"package {place}, version {version}")
    if not found:
        what = f"environment {sys.prefix}" if in_environment() else f"Python {sys.executable}"
        why_not = f"it is not enabled for the {what}"
    elif in_use is None and why_not is None:
        why_not = "this Python was started before it was enabled, or does not read that file"
    if why_not is None and _hook.disabled():
        why_not = "RTRACK_DISABLE is set"
    say(f"this process uses Python's own tracker: {why_not}" if why_not
        else "this process uses rtrack")
    return 1 if why_not else 0


def state_of_program(record):
    """Says which program it is; why it cannot be used, or None."""
    program = record["program"]
    try:
        _hook.check(program, None)
        version = _hook.version(program)
    except _hook.NotUsable as error:
        say(f"program {error}")
        return str(error)
    changed = "" if version == record["version"] else f" ({record['version']} when it was enabled)"
    say(f"program {program}, version {version}{changed}")
    return None


def say(line):
    """A line on standard output."""
    tell(line, "stdout")


def tell(line, name):
    """A line on that standard stream. A path that cannot be encoded does not stop it, nor does a stream
    that is closed, full, or a pipe without a reader: what was done is done, and the exit status
    says that."""
    stream = getattr(sys, name)
    if stream is None:
        return
    try:
        encoding = stream.encoding or "ascii"
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except OSError as error:
        # The rest of what is said goes nowhere, and what is left of it when Python ends.
        setattr(sys, name, None)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        if name == "stdout" and not isinstance(error, BrokenPipeError):
            tell(f"warning: standard output cannot be written: {error.strerror}", "stderr")


def main():
    """Reads the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rtrack",
        description="Makes every resource tracker that this Python environment starts an "
                    "`rtrack daemon`: multiprocessing's, loky's and joblib's. RTRACK_DISABLE=1 "
                    "switches it off for a process.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    one = commands.add_parser("enable", help="use rtrack from now on")
    one.add_argument("--program", metavar="PATH", help="this rtrack, not the package's own")
    one.set_defaults(run=enable)
    commands.add_parser("disable", help="undo it").set_defaults(run=disable)
    one = commands.add_parser("status", help="what is enabled; 1 if this process would not use it")
    one.set_defaults(run=status)
    options = parser.parse_args()
    try:
        return options.run(options)
    except Refused as error:
        tell(f"error: {error}", "stderr")
        return 1


if __name__ == "__main__":
    sys.exit(main())
