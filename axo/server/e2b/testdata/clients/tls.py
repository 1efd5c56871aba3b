"""Uses the PyPI package e2b over TLS, with the authority that SSL_CERT_FILE names."""

import json
import sys
import traceback

sys.path.insert(0, sys.argv[1])

from e2b import Sandbox  # noqa: E402

name = "TLS, by E2B_API_URL and E2B_SANDBOX_URL: programs, files"
try:
    box = Sandbox.create(metadata={"axo.tier": "oci"}, timeout=600)
    assert box.commands.run("echo hi").stdout == "hi\n"
    box.files.write("a", "text")
    assert box.files.read("a") == "text"
    assert box.kill()
    print(json.dumps({"name": name}))
except Exception:
    print(json.dumps({"name": name, "error": traceback.format_exc()}))
