def _axo():
    import atexit, gc, os, sys, types

    # What programs ask for most: their own import of it is then nothing.
    import base64, collections, datetime, functools, itertools, io, json, math, random, re, string, textwrap, time, traceback, typing

    leave = os._exit

    # Past sys.stdin, so that nothing of the program's own input is taken.
    def take(n):
        b = b""
        while len(b) < n:
            more = os.read(0, n - len(b))
            if not more:
                leave(0)  # nobody wants it any more
            b += more
        return b

    before = set(sys.modules)
    gc.collect()
    gc.freeze()

    head = take(8)
    args = [os.fsdecode(a) for a in take(int.from_bytes(head[:4], "big")).split(b"\0")[:-1]]
    for e in take(int.from_bytes(head[4:], "big")).split(b"\0")[:-1]:
        k, _, v = e.partition(b"=")
        os.environ[os.fsdecode(k)] = os.fsdecode(v)
    sys.argv = ["-c"] + args[3:]
    sys.orig_argv = args

    # The program gets a module of its own, and so can be taken down without
    # what was here before it.
    first = sys.modules["__main__"].__dict__
    del first["_axo"]
    main = types.ModuleType("__main__")
    main.__dict__.clear()
    main.__dict__.update(first)
    sys.modules["__main__"] = main

    # What follows is Py_RunMain's and Py_FinalizeEx's part, as far as a program
    # sees it. The rest of theirs takes the interpreter to pieces, for 15 ms.
    def status_of(e):
        if e.code is None:
            return 0
        if isinstance(e.code, int):
            if -(2**31) <= e.code < 2**31:
                return e.code
            print("OverflowError: Python int too large to convert to C long", file=sys.stderr)
            return -1
        sys.stdout.flush()
        print(e.code, file=sys.stderr)
        return 1

    def report(e):
        sys.last_exc, sys.last_type, sys.last_value, sys.last_traceback = e, type(e), e, e.__traceback__
        try:
            sys.excepthook(type(e), e, e.__traceback__)
        except SystemExit as other:
            return status_of(other)
        except BaseException as other:
            print("Error in sys.excepthook:", file=sys.stderr)
            traceback.print_exception(other.with_traceback(other.__traceback__.tb_next))
            print("\nOriginal exception was:", file=sys.stderr)
            traceback.print_exception(e)
        return 130 if isinstance(e, KeyboardInterrupt) else 1

    def flush():
        good = True
        for f in (sys.stdout, sys.stderr):
            try:
                if f is not None and not f.closed:
                    f.flush()
            except BaseException:
                good = False
        return good

    status, error = 0, None
    try:
        exec(compile(args[2], "<string>", "exec", dont_inherit=True), main.__dict__)
    except SystemExit as e:
        status = status_of(e)
    except BaseException as e:
        # Without this frame, as if the code had been all.
        error = e.with_traceback(e.__traceback__.tb_next)
    if error is not None:
        status = report(error)
    atexit._run_exitfuncs()
    good = flush()
    # Finalizers of what the program left run now.
    sys.last_exc = sys.last_type = sys.last_value = sys.last_traceback = None
    for name in [n for n in sys.modules if n not in before or n == "__main__"]:
        del sys.modules[name]
    del main, error
    gc.collect()
    if not flush() or not good:
        status = 120
    leave(status)


_axo()
