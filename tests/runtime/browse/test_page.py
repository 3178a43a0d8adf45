"""The page in a real browser: what a person sees, clicks, drops, presses and passes on as a link."""

import base64

import browsing
import pytest
from browsing import chromium, wait_for

pytestmark = pytest.mark.skipif(bool(browsing.missing()), reason=browsing.missing() or "a browser is there")

RESULTS = "document.querySelectorAll('.results .column').length"
READY = "document.body.classList.contains('ready')"
LOADED = "document.querySelectorAll('.wall .tile.loaded').length"


@pytest.fixture(scope="module")
def driver():
    with chromium(1200, 800) as opened:
        yield opened


@pytest.fixture
def browser(driver, page):
    """The wall, once every image is embedded, with no error said so far."""
    driver.get("about:blank")
    driver.get(page.url)
    wait_for(driver, READY, 20)
    wait_for(driver, "fetch('/api/state').then((answer) => answer.json()).then(({ full }) => full)")
    yield driver
    said = [entry["message"] for entry in driver.get_log("browser")]
    assert [
        line for line in said if "415" not in line and "?v=x" not in line
    ] == []  # no images, and none that is there


def press(driver, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def title(driver):
    return driver.execute_script("return document.querySelector('.heading h2')?.textContent")


def open_image(driver, page, name, rest=""):
    driver.get(f"{page.url}#image={name}{rest}")
    wait_for(driver, f"document.querySelector('.heading h2')?.textContent === '{name}'")


def test_the_wall_shows_the_images_and_a_click_their_neighbours(browser):
    wait_for(browser, f"{LOADED} >= 20")
    assert browser.execute_script("return document.querySelector('#summary').textContent").startswith(
        "99 images · k-NN: "
    )
    browser.execute_script("document.querySelector('.wall .tile[data-number=\"5\"]').click()")
    wait_for(browser, f"{RESULTS} === 2")
    assert title(browser) == "astronaut/05.png"
    for column in range(2):
        scores = browser.execute_script(
            f"return [...document.querySelectorAll('.column')][{column}].querySelectorAll('.score').length"
        )
        assert scores == 24
    assert browser.execute_script("return location.hash") == "#image=astronaut/05.png"
    assert browser.execute_script("return document.querySelectorAll('.neighbours .right').length") > 0
    assert browser.execute_script("return document.querySelectorAll('.neighbours .wrong').length") > 0


def test_a_file_that_is_dropped_or_pasted_is_searched(browser, folder):
    content = base64.b64encode((folder / "coffee" / "05.png").read_bytes()).decode()
    make = f"""
        const bytes = Uint8Array.from(atob('{content}'), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], 'mine.png', {{ type: 'image/png' }}));
    """
    for event in (
        "new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })",
        "new ClipboardEvent('paste', { clipboardData: data, bubbles: true })",
    ):
        press(browser, "\ue00c")  # Escape
        wait_for(browser, f"{RESULTS} === 0")
        browser.execute_script(f"{make} document.body.dispatchEvent({event})")
        wait_for(browser, f"{RESULTS} === 2")
        assert title(browser) == "Your image"
        first = "return document.querySelector('.column li .score').textContent"
        assert browser.execute_script(first) == "1.000"
    link = browser.current_url
    browser.get("about:blank")
    browser.get(link)
    wait_for(browser, f"{RESULTS} === 2")
    wait_for(browser, "document.querySelector('.query img').naturalWidth === 120")
    browser.find_element("id", "file").send_keys(str(folder / "chelsea" / "text.jpg"))
    wait_for(browser, "!document.querySelector('#note').hidden")
    assert "not an image of a known format" in browser.find_element("id", "note").text


def test_what_one_artifact_alone_found_is_marked(browser, page):
    """Both toys give the same vectors: nothing is marked, until one column lacks a neighbour."""
    open_image(browser, page, "coffee/05.png")
    assert browser.find_element("css selector", ".shared").text == "24 of 24 neighbours are the same"
    assert browser.execute_script("return document.querySelectorAll('.alone:not(.swatch)').length") == 0
    browser.execute_async_script("""
        const done = arguments[0]
        Promise.all([import('/page/results.js'), fetch('/api/state').then((a) => a.json()),
            fetch('/api/neighbours/30?count=5').then((a) => a.json())]).then(([{ Results }, state, answer]) => {
            answer.columns[1].neighbours.pop()
            new Results(document.querySelector('#results')).show(answer, state, 0)
            done()
        })
    """)
    assert browser.find_element("css selector", ".shared").text == "4 of 5 neighbours are the same"
    marked = "return [...document.querySelectorAll('.column')].map((c) => c.querySelectorAll('.alone').length)"
    assert browser.execute_script(marked) == [1, 0]


def test_the_heatmap_lies_over_the_patches_and_a_link_brings_it_back(browser, page):
    open_image(browser, page, "coffee/05.png")
    press(browser, "h")
    wait_for(browser, "document.querySelectorAll('.column .neighbours .heat').length === 24")
    hung = "return [...document.querySelectorAll('.column')].map((c) => c.querySelectorAll('.heat').length)"
    assert browser.execute_script(hung) == [0, 25]  # the other artifact does not say where it looks
    box = browser.execute_script("""
        const image = document.querySelectorAll('.query img')[1].getBoundingClientRect()
        const heat = document.querySelectorAll('.query')[1].querySelector('.heat').getBoundingClientRect()
        return [(heat.left - image.left) / image.width, (heat.top - image.top) / image.height,
                (heat.right - image.left) / image.width, (heat.bottom - image.top) / image.height]
    """)
    # 120x100 resized to 87x73, of which the middle 64 are seen
    assert box == pytest.approx([11.5 / 87, 4.5 / 73, 75.5 / 87, 68.5 / 73], abs=0.02)
    link = browser.current_url
    assert link.endswith("#image=coffee/05.png&heat=80")
    browser.get("about:blank")
    browser.get(link)
    wait_for(browser, "document.querySelectorAll('.column .heat').length === 25")
    assert title(browser) == "coffee/05.png"
    assert browser.execute_script("return getComputedStyle(document.querySelector('.heat')).opacity") == "0.8"
    press(browser, "h")
    wait_for(browser, "document.querySelectorAll('.heat').length === 0")


def test_everything_is_done_by_keys(browser):
    press(browser, "\ue015")  # an arrow: into the wall
    wait_for(browser, "document.activeElement.dataset.number === '0'")
    press(browser, "\ue014", "\ue014")
    assert browser.execute_script("return document.activeElement.dataset.number") == "2"
    press(browser, "\ue010")  # End
    wait_for(browser, "document.activeElement.dataset.number === '98'")
    press(browser, "\ue011", "\ue006")  # Home, Enter
    wait_for(browser, f"{RESULTS} === 2")
    press(browser, "j")
    wait_for(browser, "document.querySelector('.heading h2').textContent === 'astronaut/01.png'")
    press(browser, "?")
    assert browser.execute_script("return document.querySelector('#help').open")
    press(browser, "\ue00c")
    press(browser, "\ue00c")
    wait_for(browser, f"{RESULTS} === 0")


def test_a_name_that_is_a_script_is_a_name(browser, script_name):
    browser.execute_script("location.hash = '#image=' + encodeURIComponent(arguments[0])", f"chelsea/{script_name}")
    wait_for(browser, f"{RESULTS} === 2")
    assert title(browser) == f"chelsea/{script_name}"
    assert browser.title == f"chelsea/{script_name} · mimexport"
    assert browser.execute_script("return document.querySelectorAll('h2 img').length") == 0


def test_a_phone_shows_one_thing_at_a_time_and_nothing_runs_over_its_edge(browser, page):
    browsing.resize(browser, 390, 800, phone=True)
    try:
        wait_for(browser, "document.querySelectorAll('.wall .tile').length > 0")
        open_image(browser, page, "coffee/05.png")
        assert not browser.find_element("id", "wall").is_displayed()
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        assert browser.execute_script("return document.querySelector('#results').scrollWidth") <= 390
    finally:
        browsing.resize(browser, 1200, 800)


def test_a_hundred_thousand_images_need_no_more_elements_than_are_in_view(browser):
    browser.execute_async_script("""
        const done = arguments[0]
        import('/page/wall.js').then(({ Wall }) => {
            window.large = new Wall(document.querySelector('#wall'), document.querySelector('#sheet'))
            large.show(100000, { version: 'x', heat: 0, artifact: null })
            large.scrollTo(99990)
            done()
        })
    """)
    assert browser.execute_script("return large.shown.has(99999)")
    assert browser.execute_script("return large.shown.size") < 300
    browser.execute_script("for (let at = 0; at < 100000; at += 5000) large.scrollTo(at)")
    assert browser.execute_script("return document.querySelectorAll('#sheet .tile').length") < 600
