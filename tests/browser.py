"""A real browser: opens a page in headless Chromium, runs a script in it and returns what that found."""

import html
import json
import re
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
