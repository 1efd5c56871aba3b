def _axo():
    import os, sys
    import resource, socket, struct, time
    # What programs ask for most: their own import of it is then nothing.
    import base64, collections, datetime, functools, itertools, io, json, math, random, re, string, textwrap, traceback, typing

    import _io, _thread, _weakref, atexit, gc, types

    s = socket.socket(fileno=3)
    copy = -1
    if sys.argv[1:] == ["rehearse"]:
        # In an emulated machine the first run of all code takes long, in this
        # process also of what has run in another one. So a copy of it becomes a
        # program once and ends, before anybody waits.
        a, b = socket.socketpair()
        try:
            copy = os.fork()
        except OSError:
            pass  # then it is slower
        if copy == 0:
            a.close()
            s.detach()
            s = b
        elif copy > 0:
            b.close()
            null = os.open("/dev/null", os.O_RDWR)
            body = b""
            for l in (["python3", "-c", "print(6 * 7)"], ["PATH=/"]):
                body += struct.pack("!I", len(l)) + b"".join(struct.pack("!I", len(x)) + x.encode() for x in l)
            body += struct.pack("!I", 1) + b"/" + struct.pack("!IIQQ", 1, resource.RLIMIT_CORE, 0, 0)
            socket.send_fds(a, [struct.pack("!I", len(body))], [null] * 3)
            a.sendall(body)
            if a.recv(1) == b"K":
                a.sendall(b"G")
            a.close()
            os.waitpid(copy, 0)
            os.close(null)
        if copy != 0:
            a.close()
            b.close()
    known, callbacks, leave = set(sys.modules), atexit._ncallbacks(), os._exit

    def unnoticed():
        """Reports whether nothing that the program has made would see its end.

        Then the interpreter need not take itself apart, module by module, for longer
        than most programs run.
        """
        if _thread._count() or atexit._ncallbacks() != callbacks or gc.get_freeze_count() > frozen:
            return False
        if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
            return False
        for name, m in sys.modules.items():
            # What is not Python may have an end of its own.
            if name not in known and not str(getattr(m, "__file__", None)).endswith(".py"):
                return False
        suspends = types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType
        for o in gc.get_objects():  # but for those that were there before
            t = type(o)
            if issubclass(t, type):
                if "__del__" in vars(o):
                    return False
            elif issubclass(t, _weakref.ref):
                if o.__callback__ is not None:
                    return False
            elif issubclass(t, suspends) or issubclass(t, _io._IOBase):
                return False
        sys.stdout.flush()
        sys.stderr.flush()
        return True

    compile("pass", "<string>", "exec", dont_inherit=True)  # the first makes a hundred types
    # What is here by now is not searched for garbage again, at the end least.
    gc.collect()
    gc.freeze()
    frozen = gc.get_freeze_count()
    if copy != 0:
        s.sendall(b"R")

    def take(n):
        b = b""
        while len(b) < n:
            more = s.recv(n - len(b))
            if not more:
                os._exit(0)  # nobody wants it any more
            b += more
        return b

    head, fds, _, _ = socket.recv_fds(s, 4, 3)
    if not head:
        os._exit(0)
    head += take(4 - len(head))
    body = take(struct.unpack("!I", head)[0])
    at = 0

    def number(form):
        nonlocal at
        (v,) = struct.unpack_from(form, body, at)
        at += struct.calcsize(form)
        return v

    def text():
        nonlocal at
        n = number("!I")
        at += n
        return body[at - n : at]

    args = [os.fsdecode(text()) for _ in range(number("!I"))]
    env = [text() for _ in range(number("!I"))]
    cwd = text()
    for i, fd in enumerate(fds):
        os.dup2(fd, i)
    for fd in fds:
        os.close(fd)
    os.chdir(cwd)
    for _ in range(number("!I")):
        what, cur, most = number("!I"), number("!Q"), number("!Q")
        resource.setrlimit(what, tuple(-1 if v == 2**64 - 1 else v for v in (cur, most)))
    os.environb.pop(b"PATH", None)
    for e in env:
        k, _, v = e.partition(b"=")
        os.environb[k] = v
    time.tzset()
    sys.argv = ["-c"] + args[3:]
    sys.orig_argv = args
    # From the host's word on it runs, and never a second time.
    s.sendall(b"K")
    if s.recv(1) != b"G":
        os._exit(0)
    s.close()
    for name in ("socket", "_socket", "selectors", "resource", "atexit"):
        sys.modules.pop(name, None)
    main = sys.modules["__main__"].__dict__
    del main["_axo"]
    status = 0
    try:
        exec(compile(args[2], "<string>", "exec", dont_inherit=True), main)
    except SystemExit as e:
        status = 0 if e.code is None else e.code
        if type(status) is not int or not 0 <= status < 256:
            gc.unfreeze()
            raise
    except BaseException as e:
        status = 1
        # Without this frame, as if the code had been all.
        e.__traceback__ = e.__traceback__.tb_next
        sys.excepthook(type(e), e, e.__traceback__)
        if isinstance(e, KeyboardInterrupt):
            import signal

            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    try:
        if unnoticed():
            leave(status)
    except Exception:
        pass  # it sees to it in its own way
    gc.unfreeze()  # for a whole end
    sys.exit(status)


_axo()
