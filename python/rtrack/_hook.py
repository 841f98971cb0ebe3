"""What `rtrack.pth` loads when a resource tracker's module is imported: the launch itself.

A tracker is started by `multiprocessing.util.spawnv_passfds`, or by loky's `fork_exec` before
loky 3.5. Both are wrapped. A call whose arguments are exactly those that start a tracker starts
`rtrack daemon` on the same pipe; every other call goes through as it is. If the daemon does not
come up, the call goes through as well, and one line on stderr says why.

Handlers of signals run in the middle of all this, and may raise. What they raise is the program's, and
reaches it. It never makes the call go through: the pipe would have a second reader.

This file is executed by path and not imported as `rtrack._hook`, since a program may have a module
of its own called rtrack. `install` is what a `rtrack.pth` calls, one that an older version of the
package wrote included: its name and arguments stay.
"""

import errno
import os
import sys

# The oldest `rtrack` whose daemon has every option that is used here.
MINIMUM = (0, 1, 0)

# Seconds: for `--version`, and for a daemon to come up, which takes milliseconds.
VERSION_PATIENCE, START_PATIENCE = 5, 10

STDLIB = "multiprocessing"
LOKY = ("loky.backend", "joblib.externals.loky.backend")

# What a leak is warned of by. Filters compare the start of the text, and the whole module.
WARNING_TEXT = "resource_tracker: "
ACTIONS = ("default", "always", "ignore", "module", "once", "error")


class NotUsable(Exception):
    """Why the program cannot be the tracker."""


# ------------------------------------------------------------------------------- installation


def install(name, record):
    """Wraps what the module `name`, which is about to be imported, starts its tracker by.

    `record` is what `python -m rtrack enable` noted: `program` and its `identity`.
    """
    from multiprocessing import util

    # Two modules may be imported for the first time at once, each by a thread of its own. What was
    # looked at is what is wrapped, so that the second wrapper replaces the first and does not wrap
    # it. A lock could be held in a process that forks, and then for ever in its child.
    spawn = util.spawnv_passfds
    if not hasattr(spawn, "rtrack_record"):
        util.spawnv_passfds = wrapped_spawn(spawn, record)
    package = name.rpartition(".")[0]
    if package in LOKY:
        from importlib import import_module

        module = import_module(package + ".fork_exec")
        fork = module.fork_exec
        if not hasattr(fork, "rtrack_record"):
            spawn = util.spawnv_passfds.__wrapped__
            module.fork_exec = wrapped_fork_exec(fork, spawn, record)


def wrapped_spawn(original, record):
    """`spawnv_passfds` of the standard library."""

    def spawnv_passfds(path, args, passfds):
        pid = start_instead(original, record, args, passfds)
        return original(path, args, passfds) if pid is None else pid

    return disguised(spawnv_passfds, original, record)


def wrapped_fork_exec(original, spawn, record):
    """`fork_exec` of loky, by which its tracker is started up to version 3.4."""

    def fork_exec(cmd, keep_fds, *more, **named):
        pid = None
        if not more and not named:
            pid = start_instead(spawn, record, cmd, keep_fds)
        return original(cmd, keep_fds, *more, **named) if pid is None else pid

    return disguised(fork_exec, original, record)


def disguised(wrapper, original, record):
    """Makes the one look like the other to whoever inspects it."""
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(wrapper, attribute, getattr(original, attribute, None))
    wrapper.__wrapped__ = original
    wrapper.rtrack_record = record
    return wrapper


# ----------------------------------------------------------------------------------- the launch


def start_instead(spawn, record, args, passfds):
    """The pid of the daemon that was started, or None where the call has to go through."""
    try:
        try:
            options = recognise(args, passfds)
            if options is None or disabled():
                return None
            program = record["program"]
            check(program, record.get("identity"))
        except Exception as error:  # whatever it is, the program has a tracker
            raise not_usable(error) from None
        return start(spawn, program, options, passfds)
    except NotUsable as error:
        trouble = str(error)
    undisturbed(complain, f"{trouble}; Python's own resource tracker is used")
    return None


def not_usable(error):
    """The NotUsable to raise for an exception of this file's own work. One that a handler raised in
    the middle of it is raised itself."""
    if isinstance(error, NotUsable):
        return error
    if is_foreign(error):
        raise error
    return NotUsable(f"{type(error).__name__}: {error}")


def is_foreign(error):
    """Whether code took part that is neither this file's nor the standard library's, or it is of a
    class that both do not raise: then it is the program's."""
    library = os.path.dirname(getattr(os, "__file__", "?")) + "/"
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        file = frame.f_code.co_filename
        ours = frame.f_globals is globals() or file.startswith("<frozen ")
        if not ours and (not file.startswith(library) or "-packages/" in file):
            return True
        trace = trace.tb_next
    # An exception can be put into a thread without any frame of its own.
    return type(error).__module__ != "builtins" or isinstance(error, TimeoutError)


def undisturbed(function, *arguments):
    """Calls it while this thread takes no signal, so that no handler raises in the middle of it. A
    handler whose signal came meanwhile does when it is done."""
    from _signal import SIG_BLOCK, SIG_SETMASK, pthread_sigmask, valid_signals

    # Other threads may take a signal nevertheless, and the handler still runs in the main one. So the
    # function is called whatever the blocking raises, and the mask put back again if the first time
    # was not reached.
    before, restored = pthread_sigmask(SIG_BLOCK, ()), False
    try:
        try:
            pthread_sigmask(SIG_BLOCK, valid_signals())
        finally:
            try:
                function(*arguments)
            finally:
                pthread_sigmask(SIG_SETMASK, before)
                restored = True
    finally:
        if not restored:
            pthread_sigmask(SIG_SETMASK, before)


def disabled():
    """Whether this process is to be left alone."""
    return os.environ.get("RTRACK_DISABLE", "") not in ("", "0")


def complain(text):
    """One line, if there is anywhere to write it."""
    try:
        sys.stderr.write(f"rtrack: {text}\n".replace("\n", " ").rstrip() + "\n")
        sys.stderr.flush()
    except Exception:
        pass


def recognise(args, passfds):
    """The daemon's options if these arguments start a resource tracker, else None."""
    # The interpreter itself may be None, where Python is embedded.
    words = [os.fsdecode(word) for word in list(args)[1:]]
    if len(words) < 2 or words[-2] != "-c":
        return None
    start, middle, end = words[-1].partition(".resource_tracker import main;")
    package, arguments = start[len("from "):], end.strip()
    if not (start.startswith("from ") and middle and arguments.startswith("main(")):
        return None
    arguments = arguments[len("main("):]
    if not arguments.endswith(")"):
        return None
    number, comma, verbose = arguments[:-1].partition(", ")
    flags = interpreter_flags(words[:-2])
    if flags is None or not (number.isascii() and number.isdigit()):
        return None
    if int(number) not in [int(fd) for fd in passfds]:
        return None
    if package == STDLIB and not comma:
        options = ["--fd", number, "--protocol", "any"]
    elif package in LOKY and (verbose in ("True", "False") or verbose.isdigit()):
        options = ["--fd", number, "--protocol", "loky"]
        if verbose != "False" and verbose.strip("0"):
            options.append("--verbose")
        if passes_over_missing_files(package):
            options.append("--missing-files-ok")
    else:
        return None
    if silent(package + ".resource_tracker", warning_options(flags)):
        options.append("--no-warnings")
    # Programs that count or kill their children spare one whose command line, or whose last word,
    # has `resource_tracker` in it. loky's own tests do.
    return [*options, "--in-place-of", words[-1]]


def passes_over_missing_files(package):
    """Whether the tracker of that package would. joblib puts a function of its own into its copy of
    loky's, in the tracker as well as here: since joblib 1.2 one that is silent of a file that is gone."""
    module = sys.modules.get(package + ".resource_tracker")
    unlink = getattr(module, "_CLEANUP_FUNCS", {}).get("file")
    code = getattr(unlink, "__code__", None)
    return package != LOKY[0] and "FileNotFoundError" in getattr(code, "co_names", ())


def interpreter_flags(words):
    """The flags between the interpreter and its `-c`, or None if something else is among them."""
    flags, words = [], iter(words)
    for word in words:
        if word == "-X":
            word += next(words, "")
        if len(word) < 2 or word[0] != "-" or word[1] in "-cm":
            return None
        flags.append(word)
    return flags


def start(spawn, program, options, passfds):
    """Starts the daemon and waits until it reads its pipe; its pid.

    `spawn` tells nobody whether the program could be executed at all, and what is written to a
    pipe without a reader is lost, so the daemon has to say that it is there.

    NotUsable: there is no daemon, and Python's own tracker may be started. With every other
    exception there is none either, or it is about to end, since the caller closes the pipe. Signals
    are not blocked for all of this: the daemon would inherit that, and a program's timeout
    not come in time.
    """
    try:
        reader, writer = os.pipe()
    except OSError as error:
        raise not_usable(error) from None
    pid = None
    try:
        try:
            readable = readiness(reader)
            pid = launch(spawn, program, ["--ready-fd", str(writer), *options], [*passfds, writer])
        finally:
            os.close(writer)
        came = wait_for_line(readable, reader, pid)
        how = None if came else end(pid)
    except BaseException:
        if pid is not None:
            # Twice, if another exception comes before the first one could do anything.
            children = [pid]
            try:
                undisturbed(bury, children)
            finally:
                bury(children)
        raise
    finally:
        os.close(reader)
    if came:
        return pid
    raise NotUsable(f"{program} did not come up ({how})")


def launch(spawn, program, options, passfds):
    """The pid of the program. NotUsable: it could not be started."""
    try:
        # By its name it is known among processes, whatever the file is called.
        return spawn(os.fsencode(program), ["rtrack", "daemon", *options], passfds)
    except OSError as error:
        # By these there is no process. Of anything else nobody knows.
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
            raise not_usable(error) from None
        raise


def readiness(reader):
    """What waits a moment for the pipe to be readable, and says whether it is. All that can fail of
    it fails here, before there is a process."""
    try:
        from select import poll
    except ImportError:  # some libraries replace the module by one without it
        try:
            from select import select
        except Exception as error:
            raise not_usable(error) from None

        return lambda: select([reader], [], [], 0.05)[0]
    poller = poll()
    poller.register(reader, 1)  # POLLIN
    return lambda: poller.poll(50)


def wait_for_line(readable, reader, pid):
    """Whether the newline came, before the end of input, the end of the process, or of patience."""
    from time import monotonic

    deadline = monotonic() + START_PATIENCE
    while monotonic() < deadline:
        if readable():
            return os.read(reader, 1) == b"\n"
        # A fork by another thread may hold the write end of this pipe: no end of input then.
        if has_ended(pid):
            return False
    return False


def has_ended(pid):
    """Whether the child has. It stays a zombie."""
    try:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, pid, flags) is not None
    except ChildProcessError:  # SIGCHLD is ignored, or somebody else waits for every child
        return True


def end(pid):
    """Sees to it that the child is gone; how it ended, for people."""
    from time import sleep

    for _ in range(50):  # it has closed its end already, and may have a last word to say
        if has_ended(pid):
            break
        sleep(0.01)
    else:
        bury([pid])
        return "it was not ready in time"
    try:
        status = os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return "it is gone"
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit status {os.WEXITSTATUS(status)}"


def bury(children):
    """Kills these children, takes their statuses, and empties the list."""
    while children:
        try:
            if not has_ended(children[-1]):
                os.kill(children[-1], 9)
            os.waitpid(children[-1], 0)
        except (ChildProcessError, ProcessLookupError):
            pass
        children.pop()


# ------------------------------------------------------------------------------------ warnings


def warning_options(flags):
    """The warning filters that the tracker's own interpreter would have, the last one first."""
    from_flags = [flag[2:] for flag in flags if flag.startswith("-W")]
    ignored = any(flag in ("-E", "-I") for flag in flags)
    variable = "" if ignored else os.environ.get("PYTHONWARNINGS", "")
    return [*(option for option in variable.split(",") if option), *from_flags][::-1]


def silent(module, options):
    """Whether those filters keep a leak from being told. One that makes it an error does: the
    tracker swallows it."""
    for option in options:
        fields = [field.strip() for field in option.split(":")]
        if len(fields) > 5:
            continue  # invalid, and ignored by the interpreter
        action, text, category, of_module, line = (fields + [""] * 5)[:5]
        action = "always" if action == "all" else action or "default"
        action = next((name for name in ACTIONS if name.startswith(action)), None)
        # The line number of the warning differs from version to version; 0 is any.
        if action is None or line.strip("0") or (line and not line.isdigit()):
            continue
        if not WARNING_TEXT.lower().startswith(text.lower()):
            continue
        if of_module not in ("", module) or not covers_user_warning(category):
            continue
        return action in ("ignore", "error")
    return False


def covers_user_warning(category):
    """Whether a warning class of that name is UserWarning or a base of it. A module is not imported
    for it: no class of one that is not loaded is such a base."""
    module, _, name = category.rpartition(".")
    module = sys.modules.get(module or "builtins")
    found = getattr(module, name, None) if category else Warning
    return isinstance(found, type) and issubclass(found, Warning) and issubclass(UserWarning, found)


# ------------------------------------------------------------------------------- the program


def identity(program):
    """What changes when the program is replaced. OSError: it is not there."""
    stat = os.stat(program)
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns]


checked = {}


def check(program, known):
    """NotUsable: it is missing, cannot be executed, or is too old. One that is still what it was
    when it was enabled is not asked again."""
    try:
        now = identity(program)
    except OSError as error:
        if is_foreign(error):
            raise
        missing = isinstance(error, FileNotFoundError)
        raise NotUsable(f"{program} {'is missing' if missing else error.strerror}") from None
    if not os.path.isfile(program) or not os.access(program, os.X_OK):
        raise NotUsable(f"{program} is not executable")
    if now != known and checked.get(program) != now:
        require_new_enough(program, version(program))
        checked[program] = now


def require_new_enough(program, text):
    """NotUsable: that version is too old."""
    numbers = tuple(int(part) for part in text.split(".")[:3])
    if numbers < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise NotUsable(f"{program} is too old ({text}; it has to be {wanted} or newer)")


def version(program):
    """The version that the program says it has, `X.Y.Z`. NotUsable: it does not."""
    import subprocess

    try:
        process = subprocess.Popen(
            [program, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )
    except OSError as error:
        # It has the program's name where that was executed, by whatever library's Popen.
        if error.filename is None and is_foreign(error):
            raise
        raise NotUsable(f"{program} cannot be run: {error.strerror}") from None
    try:
        said = process.communicate(timeout=VERSION_PATIENCE)[0]
    except subprocess.TimeoutExpired:
        raise NotUsable(
            f"{program} --version does not end within {VERSION_PATIENCE} seconds"
        ) from None
    finally:
        # Not only the process: what it started may hold the pipe.
        try:
            os.killpg(process.pid, 9)
        except (ProcessLookupError, PermissionError):
            pass
        process.stdout.close()
        process.wait()
    words = said.decode("ascii", "replace").split()
    text = words[1].partition("-")[0] if len(words) > 1 and words[0] == "rtrack" else ""
    if process.returncode != 0 or not all(part.isdigit() for part in text.split(".")):
        raise NotUsable(f"{program} is not rtrack: it does not say its version")
    return text
