"""A real Chromium, and what tests of pages look for in it."""

import shutil

import pytest
from selenium import webdriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDS_CHROMIUM = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver")

# Elements that are wider than the page where nothing round them scrolls.
PAST_THE_EDGE = """
const scrolls = (one) => one && (getComputedStyle(one).overflowX != "visible" || scrolls(one.parentElement));
return [...document.querySelectorAll("main *")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width && box.right > document.documentElement.clientWidth + 1 && !scrolls(one.parentElement);
}).map((one) => one.outerHTML.slice(0, 100));
"""
# Pictures and controls without a name that a screen reader can say.
UNNAMED = """
const shown = (one) => one.getClientRects().length && !one.closest("[aria-hidden=true]");
const named = (one) => (one.getAttribute("aria-label") || one.title || one.alt || one.textContent || "").trim()
    || [...(one.labels || [])].some((label) => label.textContent.trim()) || one.getAttribute("aria-labelledby");
return [...document.querySelectorAll("main img, main button, main input:not([type=file]), main a, main audio")]
    .filter((one) => shown(one) && one.tagName != "AUDIO" && !named(one)).map((one) => one.outerHTML.slice(0, 200));
"""
# Texts of ours with a contrast below 4.5 (WCAG 2.2, 1.4.3).
FAINT = """
const light = (colour) => {
    const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const ground = (one) => {
    while (one) {
        const colour = numbers(getComputedStyle(one).backgroundColor);
        if (colour.length < 4 || colour[3] == 1) return colour;
        one = one.parentElement;
    }
    return [255, 255, 255];
};
return [...document.querySelectorAll("main *")].filter((one) => {
    const own = [...one.childNodes].some((node) => node.nodeType == 3 && node.textContent.trim());
    if (!own || !one.getClientRects().length || getComputedStyle(one).visibility != "visible") return false;
    const [a, b] = [light(numbers(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < 4.5;
}).map((one) => [one.textContent.trim().slice(0, 40), one.className, getComputedStyle(one).color]);
"""


def start_chromium(*flags: str) -> webdriver.Chrome:
    """Starts Chromium without a window; its console is logged."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", *flags):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
