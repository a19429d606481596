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


def look(document, script, folder, width=1200, height=900):
    """Run the body of an async function in the page once it is loaded; returns what it returns, and the errors seen.

    Args:
        document: the page.
        script: JavaScript that returns something JSON can say.
        folder: where to put the page and the browser's profile.
        width: of the page. The window itself is never narrower than Chromium allows, so the page lies in a frame.
        height: of the page.
    """
    inside = (
        "<script>window.seen = [];"
        "window.onerror = (message) => { window.seen.push(String(message)); };"
        "window.addEventListener('securitypolicyviolation', (e) => window.seen.push('blocked ' + e.blockedURI));"
        f"window.look = async () => {{ {script} }};</script>"
    )
    (folder / "page.html").write_text(document.replace("<head>", "<head>" + inside, 1), encoding="utf-8")
    harness = f"""<!doctype html><iframe src="page.html" style="width:{width}px;height:{height}px;border:0"></iframe>
<pre id="found">nothing</pre><script>
window.onload = async () => {{
  const page = document.querySelector("iframe").contentWindow;
  page.focus();
  let answer;
  try {{ answer = await page.look(); }} catch (error) {{ page.seen.push(String(error)); }}
  document.querySelector("#found").textContent = JSON.stringify([answer === undefined ? null : answer, page.seen]);
}};</script>"""
    (folder / "harness.html").write_text(harness, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=20000", "--dump-dom", f"--window-size={max(width, 800)},{height}"]
    done = subprocess.run([*command, (folder / "harness.html").as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(html.unescape(found[1]))
