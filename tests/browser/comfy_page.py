"""ComfyUI's page in a headless Chromium, worked as people do: files dropped, buttons pressed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WINDOW = (1920, 1080)
LIMIT_S = 60.0
_FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# What greets newcomers would lie over the canvas, and the last session's workflow on it.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Locale": "en",
}


def executables() -> tuple[str, str] | None:
    """(browser, its driver), or None where one of them is missing."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def opened(url: str) -> Iterator[Page]:
    """A page on a ComfyUI, in a browser of its own that is gone afterwards."""
    found = executables()
    if found is None:
        raise FileNotFoundError("chromium and chromedriver")
    browser, driver = found
    options = Options()
    options.binary_location = browser
    # Chromium refuses its sandbox to root, as in most containers.
    sandbox = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with tempfile.TemporaryDirectory(prefix="realtoon-", ignore_cleanup_errors=True) as profile:
        size = f"--window-size={WINDOW[0]},{WINDOW[1]}"
        for flag in (*_FLAGS, *sandbox, size, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        chrome = webdriver.Chrome(options=options, service=Service(driver))
        try:
            chrome.set_script_timeout(LIMIT_S)
            yield Page(chrome, url)
        finally:
            chrome.quit()


class Page:
    """The front end in a browser."""

    def __init__(self, chrome: webdriver.Chrome, url: str) -> None:
        self.chrome = chrome
        self.url = url
        self.load()

    def load(self) -> None:
        """Open the page, or open it again with nothing kept, and wait until it takes input."""
        if self.chrome.current_url.startswith(self.url):
            self.js("app.graph.clear(); localStorage.clear(); sessionStorage.clear()")
        self.chrome.get(self.url)
        self.until("the page is ready", "return !!(window.app && app.vueAppReady && app.canvas)")
        self.until("nodes are known", "return !!LiteGraph.registered_node_types.PrepareImage")
        # An empty or default workflow comes last.
        time.sleep(1.0)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(script, *arguments)

    def until(self, what: str, condition: str | Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
        """Wait for a script's or a function's first true answer; returns it."""
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            try:
                got = self.js(condition) if isinstance(condition, str) else condition()
            except WebDriverException:
                # The page is being drawn anew.
                got = None
            if got:
                return got
            time.sleep(0.2)
        raise AssertionError(f"not within {limit_s:.0f} s: {what}")

    def drop(self, file: Path) -> None:
        """Let go of a file over the canvas, with the events of a real drag."""
        self.js("app.graph.clear()")
        x, y = self.js(
            "const r = app.canvas.canvas.getBoundingClientRect();"
            "return [r.left + r.width / 2, r.top + r.height / 2]"
        )
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.chrome.execute_cdp_cmd(
                "Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data}
            )
        self.until(f"{file.name} is on the canvas", "return app.graph._nodes.length")
        # Widgets and notes come one after the other.
        time.sleep(1.0)

    def prompt(self) -> dict:
        """What Run would send."""
        return self.chrome.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "app.graphToPrompt().then((made) => done(made.output), (e) => done(String(e)))"
        )

    def saved(self) -> dict:
        """What Save would write."""
        return self.js("return JSON.parse(JSON.stringify(app.graph.serialize()))")

    def complaints(self) -> list[str]:
        """Node types that the front end lacks, and the texts of open dialogs and error messages."""
        return self.js(
            "const known = LiteGraph.registered_node_types;"
            "const missing = app.graph._nodes.map((n) => n.type).filter((t) => !(t in known));"
            "const boxes = document.querySelectorAll("
            "  '[role=dialog], .p-dialog, .comfy-modal, .p-toast-message-error');"
            "const open = [...boxes].filter((e) => e.checkVisibility());"
            "return [...missing, ...open.map((e) => e.innerText)].filter((text) => text.trim())"
        )

    def find(self, selector: str) -> WebElement:
        """The first visible element."""

        def first() -> WebElement | None:
            found = self.chrome.find_elements(By.CSS_SELECTOR, selector)
            return next((element for element in found if element.is_displayed()), None)

        return self.until(f"{selector} is there", first)

    def report(self, node_id: str) -> str:
        """What a node of ours shows in words, "" for nothing."""
        return self.js(
            "const node = app.graph._nodes.find((each) => String(each.id) === arguments[0]);"
            "const texts = node.widgets.filter((each) => "
            "  ['realtoon_report', '$$node-text-preview'].includes(each.name));"
            "const seen = texts.filter((each) => each.element?.checkVisibility() ?? true);"
            "return seen.map((each) => each.element?.innerText ?? each.value).join('\\n---\\n')",
            node_id,
        )

    def press_run(self) -> None:
        """Press the Run button."""
        # A split button in older versions: its first half runs.
        self.find("button[data-testid=queue-button], [data-testid=queue-button] button").click()

    def click_title(self, node_id: str) -> None:
        """Click on a node's title bar, which selects the node."""
        x, y = self.js(
            "const n = app.graph.getNodeById(arguments[0]) ?? app.graph.getNodeById(+arguments[0]);"
            "const [x, y] = app.canvas.ds.convertOffsetToCanvas([n.pos[0] + 90, n.pos[1] - 15]);"
            "const r = app.canvas.canvas.getBoundingClientRect();"
            "return [r.left + x, r.top + y]",
            node_id,
        )
        actions = ActionBuilder(self.chrome)
        actions.pointer_action.move_to_location(round(x), round(y)).click()
        actions.perform()

    def press_ctrl(self, key: str) -> None:
        """Press a key together with Ctrl."""
        actions = ActionChains(self.chrome)
        actions.key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def shot(self, name: str) -> None:
        """A picture of the page into the folder REALTOON_SCREENSHOTS, where that is set."""
        folder = os.environ.get("REALTOON_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.chrome.save_screenshot(str(Path(folder) / f"{name}.png"))
