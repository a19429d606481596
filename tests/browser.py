"""A real browser: opens a page in headless Chromium, runs a script in it and returns what that found."""

import html
import json
import os
import re
import select
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `apt-get install chromium`")

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
LISTEN = """<script>window.seen = [];
window.onerror = (message) => { window.seen.push(String(message)); };
window.addEventListener("securitypolicyviolation", (e) => window.seen.push("blocked " + e.blockedURI));
window.look = async () => { SCRIPT };
window.addEventListener("load", async () => {
  let answer = null;
  try { answer = await window.look(); } catch (error) { window.seen.push(String(error)); }
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify([answer, window.seen]);
  (window.frameElement ? window.parent.document : document).body.append(found);
});</script>"""


def look(document, script, folder, width=None, height=900):
    """Run the body of an async function in the page once it is loaded; returns what it returns, and the errors seen.

    Args:
        document: the page.
        script: JavaScript that returns something JSON can say.
        folder: where to put the page and the browser's profile.
        width: lays the page in a frame, for widths that Chromium's window does not have; a frame has no focus.
        height: of the frame.
    """
    page = document.replace("<head>", "<head>" + LISTEN.replace("SCRIPT", script), 1)
    (folder / "page.html").write_text(page, encoding="utf-8")
    frame = f'<!doctype html><iframe src="page.html" style="width:{width}px;height:{height}px;border:0"></iframe>'
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    opened = folder / ("page.html" if width is None else "frame.html")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=20000", "--dump-dom", "--window-size=1200,900", opened.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(html.unescape(found[1]))


class Window:
    """A page in headless Chromium under a real keyboard and mouse, over its debugging pipe.

    `press("Tab")`, `move(x, y)`, `run(script)` and `tree()`, what a screen reader is told. A context manager.
    """

    def __init__(self, document, folder, width=1200, height=900):
        (folder / "page.html").write_text(document, encoding="utf-8")
        theirs, self._to = os.pipe()
        self._from, ours = os.pipe()
        plumbing = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'  # Chromium reads from 3 and writes to 4
        flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "about:blank"]
        command = ["bash", "-c", plumbing, str(theirs), str(ours), CHROMIUM, *flags]
        self._process = subprocess.Popen(command, pass_fds=(theirs, ours), stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(ours)
        self._left, self._id, self._session = b"", 0, None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._ask("Emulation.setFocusEmulationEnabled", enabled=True)
        self._ask("Page.enable")
        self._ask("Page.navigate", url=(folder / "page.html").as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session = None
        self._ask("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._to)
        os.close(self._from)

    def press(self, key):
        """Press and release a key: "Tab", "Enter", "Escape"."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            typed = text if kind == "keyDown" else {}
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def move(self, x, y):
        """The mouse to a place in the window."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def run(self, script):
        """What an expression gives."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def tree(self):
        """Nodes of the accessibility tree: `role`, `name`, `description`."""
        self._ask("Accessibility.enable")
        nodes = self._ask("Accessibility.getFullAXTree")["nodes"]
        word = lambda node, what: node.get(what, {}).get("value", "")  # noqa: E731
        return [
            {what: word(node, what) for what in ("role", "name", "description")}
            for node in nodes
            if not node["ignored"]
        ]

    def _ask(self, method, **parameters):
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._id:
            pass
        assert "result" in answer, answer
        return answer["result"]

    def _read(self):
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._from], [], [], 60)
            assert ready, "Chromium does not answer"
            got = os.read(self._from, 1 << 16)
            assert got, "Chromium has gone"
            self._left += got
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)
