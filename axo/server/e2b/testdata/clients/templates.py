"""Builds templates with the PyPI package e2b, as docs/E2B.md says that works. Each step is a
line of JSON: its name and tier, and what went wrong if something did."""

import json
import os
import sys
import tempfile
import traceback

sys.path.insert(0, sys.argv[1])

from e2b import BuildException, Sandbox, Template, wait_for_file  # noqa: E402


def step(name):
    def run(f):
        try:
            f()
            print(json.dumps({"name": name, "tier": "oci"}), flush=True)
        except Exception:
            print(json.dumps({"name": name, "tier": "oci", "error": traceback.format_exc()}), flush=True)

    return run


context = tempfile.TemporaryDirectory()
for name, text in {"src/a.txt": "a", "src/b.txt": "b", "requirements.txt": "none"}.items():
    name = os.path.join(context.name, name)
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "w") as f:
        f.write(text)


@step("Template.build: from_base_image, copy, copy_items, make_dir, rename, remove, envs, start command")
def _():
    t = (
        Template(file_context_path=context.name)
        .from_base_image()
        .copy("src/*.txt", "/data/")
        .copy_items([{"src": "requirements.txt", "dest": "/home/user/"}])
        .make_dir("/home/user/made", mode=0o700)
        .rename("/home/user/requirements.txt", "/home/user/made/r.txt")
        .remove("/home/user/.profile")
        .set_envs({"FROM_BUILD": "1"})
        .run_cmd(["id -un > /home/user/who", "id -un >> /home/user/who"], user="root")
        .set_start_cmd("touch /tmp/started; exec sleep 600", wait_for_file("/tmp/started"))
    )
    lines = []
    info = Template.build(t, "py", tags=["v1"], on_build_logs=lambda e: lines.append(e.message))
    assert info.tags == ["v1"], info
    assert any("RUN id -un" in line for line in lines), lines
    box = Sandbox.create("py:v1", metadata={"axo.tier": "oci"})
    try:
        r = box.commands.run("cat /data/a.txt /data/b.txt made/r.txt who; ls -a; stat -c '%a %U' made; echo $FROM_BUILD; ls /tmp/started")
        assert r.stdout == "abnoneroot\nroot\n.\n..\n.bash_logout\n.bashrc\nmade\nwho\n700 user\n1\n/tmp/started\n", r.stdout
        assert "sleep" in box.commands.run("ps -ef").stdout
    finally:
        box.kill()


@step("Template.build: a step that fails")
def _():
    try:
        Template.build(Template().from_template("base").run_cmd("exit 9"), "py-bad")
    except BuildException as e:
        assert "exited with status 9" in str(e), e
    else:
        raise AssertionError("it is built")


@step("Template.exists, assign_tags, get_tags, remove_tags")
def _():
    assert Template.exists("py") and not Template.exists("no-such")
    Template.assign_tags("py:v1", ["v1.1", "stable"])
    Template.remove_tags("py", ["stable"])
    assert sorted(t.tag for t in Template.get_tags("py")) == ["v1", "v1.1"]
