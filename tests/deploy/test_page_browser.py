"""The page of the server in a real browser: what is dropped or chosen gets the scorer's verdict and its map."""

import base64  # noqa: I001
import io
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.served import Served, png, wait_for
from tests.support import blobs

from ganomaly_jax.deploy import http_app, http_gate
from ganomaly_jax.report import explanation
from ganomaly_jax.scoring import attribution

pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")
pytest.importorskip("selenium", reason="the page needs the extra `browser`")

LIMITS = http_app.Limits(body=20_000, batch=8, queue=6)


@pytest.fixture(scope="module")
def served(trained):
    running = Served(http_app.application(trained[1], LIMITS), LIMITS)
    running.until_ready()
    yield running
    running.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a screen."""
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        pytest.skip("the page needs chromium and chromedriver (Debian: chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    profile = tmp_path_factory.mktemp("profile")
    flags = "--headless=new --no-sandbox --disable-dev-shm-usage --disable-gpu --window-size=1280,900"
    for flag in (*flags.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, served):
    browser.get(f"http://127.0.0.1:{served.port}/")
    yield browser
    problems = [line["message"] for line in browser.get_log("browser") if "status of 4" not in line["message"]]
    assert not problems  # such as what the page's own policy forbids


def cards(page, count):
    """The text of each card, the newest first, once that many are done."""
    from selenium.webdriver.support.ui import WebDriverWait

    def done(page):
        found = page.find_elements("tag name", "article")
        return found if len(found) == count and not any(card.get_attribute("aria-busy") for card in found) else None

    return WebDriverWait(page, 60).until(done)


def chosen(page, folder, **files):
    """Choose these files as if with the dialogue."""
    paths = []
    for name, content in files.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(content)
    page.find_element("css selector", "input[type=file]").send_keys("\n".join(map(str, paths)))


# Drops files on the page as a file manager does: by the events of the browser.
DROP = """
const transfer = new DataTransfer();
for (const [name, text] of arguments[0])
  transfer.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }));
"""
# The pixels of a picture that is shown, as base64 of a PNG.
SHOWN = """
const canvas = document.createElement('canvas'), picture = arguments[0];
[canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
canvas.getContext('2d').drawImage(picture, 0, 0);
return canvas.toDataURL('image/png').split(',')[1];
"""


def pixels(content):
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"))


def test_chosen_files_get_the_scorers_verdicts_and_maps(page, trained, tmp_path):
    scorer = trained[1]
    images = np.concatenate([blobs(1, 5), blobs(1, 6, anomalous=True)])
    chosen(page, tmp_path, one=png(images[0]), two=png(images[1]))
    judged = scorer.judge(images)
    assert set(judged.verdicts) == {"normal", "anomalous"}
    for i, card in enumerate(cards(page, 2)):
        name, verdict, numbers = card.text.splitlines()
        assert (name, verdict) == (("one.png", "two.png")[i], judged.verdicts[i])
        sign = ">" if verdict == "anomalous" else "\u2264"
        shown = [float(word.strip(",")) for word in numbers.split() if word[0].isdigit()]
        assert numbers.startswith("score ") and f" {sign} threshold " in numbers and ", p-value " in numbers
        wanted = [judged.scores[i], scorer.threshold, judged.p_values[i]]
        assert shown == pytest.approx(wanted, rel=6e-3)
        picture = card.find_element("tag name", "img")
        assert picture.is_displayed() and "difference beyond normal" in picture.get_attribute("alt")
        seen = pixels(base64.b64decode(page.execute_script(SHOWN, picture)))
        title = explanation.title_of("", verdict, judged.scores[i], judged.p_values[i], scorer.threshold).strip()
        drawn = np.asarray(explanation.picture(scorer, attribution.residual_maps(scorer, images[i : i + 1]), 0, title))
        assert seen.shape == drawn.shape and np.abs(seen.astype(int) - drawn).mean() < 0.5


def test_what_is_dropped_goes_in_and_one_bad_file_stops_nothing(page, tmp_path):
    good = png(blobs(1, 5)[0])
    files = {"first.png": good[:60], "second.txt": b"hello", "third.png": bytes(30_000), "fourth.png": good}
    page.execute_script(DROP, [[name, base64.b64encode(content).decode()] for name, content in files.items()])
    said = [card.text.splitlines() for card in cards(page, 4)]
    assert [card[0] for card in said] == list(files)
    assert [card[1] for card in said] == ["not scored"] * 3 + ["normal"]
    assert "damaged image" in said[0][2] and "not an image" in said[1][2] and "more than 20,000 bytes" in said[2][2]
    chosen(page, tmp_path, later=good)  # and again, without loading the page anew
    assert cards(page, 5)[0].text.splitlines()[:2] == ["later.png", "normal"]


def test_it_is_reached_by_the_keyboard_and_named_for_a_screen_reader(page):
    from selenium.webdriver.common.keys import Keys

    page.find_element("tag name", "body").send_keys(Keys.TAB)
    field = page.switch_to.active_element
    assert field.get_attribute("type") == "file" and field.accessible_name.startswith("Drop images anywhere")
    assert page.execute_script("return getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    region = page.find_element("id", "list")
    assert (region.get_attribute("aria-live"), region.accessible_name) == ("polite", "Verdicts")


def test_a_busy_server_is_asked_again(page, served, tmp_path):
    served.state.inside += LIMITS.queue
    try:
        chosen(page, tmp_path, one=png(blobs(1, 5)[0]))
        path = 'ganomaly_requests_total{path="/score",status="429"}'
        wait_for(lambda: path in served.ask("GET", "/metrics")[2].decode())
        assert page.find_element("tag name", "article").text.splitlines() == ["one.png", "scoring ..."]
    finally:
        served.state.inside -= LIMITS.queue
    assert cards(page, 1)[0].text.splitlines()[1] == "normal"


def test_a_token_is_asked_for_once(browser, trained, tmp_path):
    token = "0123456789abcdef"
    app = http_app.application(trained[1], LIMITS, access=http_gate.Access(token=token.encode()))
    running = Served(app, LIMITS)
    try:
        running.until_ready()
        browser.get(f"http://127.0.0.1:{running.port}/")
        field = browser.find_element("css selector", "#key input")
        assert not field.is_displayed()
        chosen(browser, tmp_path, one=png(blobs(1, 5)[0]), two=png(blobs(1, 5)[0]))
        for given in ("a wrong one", token):
            wait_for(field.is_displayed)
            assert field.accessible_name.strip() == "This server asks for a token:"
            field.send_keys(given, "\n")
        assert [card.text.splitlines()[1] for card in cards(browser, 2)] == ["normal", "normal"]
        assert not field.is_displayed() and not browser.execute_script("return document.cookie || localStorage.length")
        browser.get_log("browser")  # the 401s
    finally:
        running.close()


def test_the_interface_is_readable(browser, served):
    browser.get(f"http://127.0.0.1:{served.port}/docs")
    shown = browser.find_element("tag name", "main").text
    assert "/score" in shown and "Retry after the seconds in Retry-After." in shown
    wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert browser.execute_script(wide)
    assert not browser.get_log("browser")  # such as what the page's own policy forbids
