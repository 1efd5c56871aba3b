"""Does with the PyPI package e2b what docs/E2B.md says that works. Each step is a line
of JSON: its name, and what went wrong if something did."""

import json
import os
import sys
import time
import traceback

sys.path.insert(0, sys.argv[1])

from e2b import CommandExitException, FileNotFoundException, Sandbox, SandboxException, TimeoutException  # noqa: E402


TIER = os.environ["AXO_TIER"]


def step(name):
    def run(f):
        try:
            f()
            print(json.dumps({"name": name}), flush=True)
        except Exception:
            print(json.dumps({"name": name, "error": traceback.format_exc()}), flush=True)

    return run


def raises(kind, f):
    try:
        f()
    except kind as e:
        return e
    raise AssertionError("nothing was raised")


def until(what, f):
    for _ in range(500):
        if f():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain for " + what)


box = Sandbox.create(metadata={"who": "py", "axo.tier": TIER}, envs={"OF_BOX": "box"}, timeout=600)


@step("Sandbox.create, get_info, is_running")
def _():
    i = box.get_info()
    assert i.sandbox_id == box.sandbox_id and i.template_id == "base" and i.metadata["who"] == "py", i
    assert box.is_running()


@step("commands.run: output, exit code, cwd, envs")
def _():
    r = box.commands.run("echo out; echo err >&2; pwd; echo $OF_BOX $OF_RUN; python3 -c 'print(6*7)'", cwd="/tmp", envs={"OF_RUN": "run"})
    assert (r.stdout, r.stderr, r.exit_code) == ("out\n/tmp\nbox run\n42\n", "err\n", 0), r
    e = raises(CommandExitException, lambda: box.commands.run("exit 7"))
    assert e.exit_code == 7


@step("commands.run: killed at its timeout")
def _():
    raises(TimeoutException, lambda: box.commands.run("exec sleep 60", timeout=1))
    until("the program to be gone", lambda: box.commands.list() == [])


@step("commands: background, list, stdin, kill, connect")
def _():
    h = box.commands.run("cat", background=True, stdin=True)
    assert h.pid in [p.pid for p in box.commands.list()]
    box.commands.send_stdin(h.pid, "in\n")
    for out, _, _ in h:
        if out:
            assert out == "in\n", out
            break
    h.disconnect()
    assert box.commands.kill(h.pid)
    until("its end", lambda: h.pid not in [p.pid for p in box.commands.list()])
    assert not box.commands.kill(h.pid)


@step("files: write, read, list, exists, get_info, make_dir, rename, remove")
def _():
    box.files.write("d/a", "text")
    assert box.files.read("d/a") == "text"
    data = bytes(range(256)) * 4096
    box.files.write("d/b", data)
    assert bytes(box.files.read("d/b", format="bytes")) == data
    assert sorted(x.name for x in box.files.list("d")) == ["a", "b"]
    assert box.files.exists("d/a") and not box.files.exists("d/none")
    assert box.files.get_info("d/b").size == len(data)
    assert box.files.make_dir("d/c") and not box.files.make_dir("d/c")
    box.files.rename("d/a", "d/c/a")
    assert box.files.read("d/c/a") == "text"
    box.files.remove("d")
    assert not box.files.exists("d")
    raises(FileNotFoundException, lambda: box.files.read("d/a"))


@step("files: watch_dir")
def _():
    box.files.make_dir("w")
    h = box.files.watch_dir("w", recursive=True)
    box.files.write("w/a", "1")
    seen = []

    def look():
        seen.extend(e.name for e in h.get_new_events())
        return "a" in seen

    until("an event", look)
    h.stop()


@step("pty")
def _():
    from e2b import PtySize

    h = box.pty.create(PtySize(rows=30, cols=100), timeout=60)
    box.pty.send_stdin(h.pid, b"stty size; exit\n")
    seen = []
    h.wait(on_pty=seen.append)
    text = b"".join(seen)
    assert b"30 100" in text, text


@step("pause, connect")
def _():
    h = box.commands.run("read x; echo got $x", background=True, stdin=True)
    box.pause()
    assert box.get_info().state.value == "paused"
    box.connect(timeout=600)
    again = box.commands.connect(h.pid)
    box.commands.send_stdin(h.pid, "it\n")
    assert again.wait().stdout == "got it\n"


@step("get_metrics")
def _():
    m = box.get_metrics()[0]
    assert m.cpu_count >= 1 and 0 <= m.cpu_used_pct <= 100 and 0 < m.mem_used < m.mem_total and 0 <= m.disk_used < m.disk_total, m


@step("list, set_timeout, connect, kill")
def _():
    assert box.sandbox_id in [x.sandbox_id for x in Sandbox.list().next_items()]
    box.set_timeout(300)
    again = Sandbox.connect(box.sandbox_id, timeout=300)
    assert again.commands.run("echo hi").stdout == "hi\n"
    assert again.kill()
    assert not Sandbox.kill(box.sandbox_id)
    raises(SandboxException, lambda: Sandbox.connect(box.sandbox_id))
