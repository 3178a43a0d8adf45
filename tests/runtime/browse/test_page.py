"""The page in a real browser: what a person sees, clicks, drops, presses and passes on as a link."""

import base64
import json
import shutil
from urllib.parse import urlsplit

import browsing
import pytest
from browsing import chromium, running_page, wait_for

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
    wait_for(browser, f"{RESULTS} === 3")
    assert title(browser) == "astronaut/05.png"
    for column in range(3):
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
        wait_for(browser, f"{RESULTS} === 3")
        assert title(browser) == "Your image"
        first = "return document.querySelector('.column li .score').textContent"
        assert browser.execute_script(first) == "1.0000"
    link = browser.current_url
    browser.get("about:blank")
    browser.get(link)
    wait_for(browser, f"{RESULTS} === 3")
    wait_for(browser, "document.querySelector('.query img').naturalWidth === 120")
    browser.find_element("id", "file").send_keys(str(folder / "chelsea" / "text.jpg"))
    wait_for(browser, "!document.querySelector('#note').hidden")
    assert "not an image of a known format" in browser.find_element("id", "note").text


@pytest.mark.parametrize(("lacking", "shared", "marked"), [(0, "5 of 5", [0, 0]), (1, "4 of 5", [1, 0])])
def test_what_one_artifact_alone_found_is_marked(browser, page, lacking, shared, marked):
    """The first two toys give the same vectors: nothing is marked, until one column lacks a neighbour."""
    open_image(browser, page, "coffee/05.png")
    browser.execute_async_script(
        """
        const [lacking, done] = arguments
        Promise.all([import('/page/results.js'), fetch('/api/state').then((a) => a.json()),
            fetch('/api/neighbours/30?count=5').then((a) => a.json())]).then(([{ Results }, state, answer]) => {
            answer.columns.pop()
            if (lacking) answer.columns[1].neighbours.pop()
            new Results(document.querySelector('#results')).show(answer, state, 0)
            done()
        })
    """,
        lacking,
    )
    assert browser.find_element("css selector", ".shared").text == f"{shared} neighbours are the same"
    found = "return [...document.querySelectorAll('.column')].map((c) => c.querySelectorAll('.alone').length)"
    assert browser.execute_script(found) == marked


def test_the_heatmap_lies_over_the_patches_and_a_link_brings_it_back(browser, page):
    open_image(browser, page, "coffee/05.png")
    press(browser, "h")
    wait_for(browser, "document.querySelectorAll('.column .heat').length === 50")
    hung = "return [...document.querySelectorAll('.column')].map((c) => c.querySelectorAll('.heat').length)"
    assert browser.execute_script(hung) == [0, 25, 25]  # the first artifact does not say where it looks
    boxes = browser.execute_script("""
        return [...document.querySelectorAll('.query')].slice(1).map((query) => {
            const image = query.querySelector('img').getBoundingClientRect()
            const heat = query.querySelector('.heat').getBoundingClientRect()
            return [(heat.left - image.left) / image.width, (heat.top - image.top) / image.height,
                    (heat.right - image.left) / image.width, (heat.bottom - image.top) / image.height]
        })
    """)
    # 120x100 resized to 87x73, or squashed to 73x73, of which the middle 64 are seen
    assert boxes[0] == pytest.approx([11.5 / 87, 4.5 / 73, 75.5 / 87, 68.5 / 73], abs=0.02)
    assert boxes[1] == pytest.approx([4.5 / 73, 4.5 / 73, 68.5 / 73, 68.5 / 73], abs=0.02)
    link = browser.current_url
    assert link.endswith("#image=coffee/05.png&heat=80")
    browser.get("about:blank")
    browser.get(link)
    wait_for(browser, "document.querySelectorAll('.column .heat').length === 50")
    assert title(browser) == "coffee/05.png"
    assert browser.execute_script("return getComputedStyle(document.querySelector('.heat')).opacity") == "0.8"
    press(browser, "h")
    wait_for(browser, "document.querySelectorAll('.heat').length === 0")


def test_everything_is_done_by_keys(browser):
    focused = "document.activeElement.dataset.number"
    press(browser, "\ue015")  # an arrow: into the wall
    wait_for(browser, f"{focused} === '0'")
    press(browser, "\ue014", "\ue014")
    assert browser.execute_script(f"return {focused}") == "2"
    press(browser, "\ue010")  # End
    wait_for(browser, f"{focused} === '98'")
    press(browser, "\ue011", "\ue006")  # Home, Enter: the first neighbour has the focus
    wait_for(browser, f"{RESULTS} === 3")
    wait_for(browser, "document.activeElement.matches('.column:first-child li:first-child .tile')")
    press(browser, "\ue014")
    assert browser.execute_script("return document.activeElement.matches('.column:first-child li:nth-child(2) .tile')")
    press(browser, "\ue015")
    assert browser.execute_script("return document.activeElement.closest('li').previousElementSibling !== null")
    second = browser.execute_script(f"return {focused}")
    press(browser, "\ue006")  # Enter: the neighbour becomes the query
    wait_for(browser, f"document.querySelector('.wall .tile.current')?.dataset.number === '{second}'")
    press(browser, "k")
    wait_for(browser, f"document.querySelector('.wall .tile.current')?.dataset.number === '{int(second) - 1}'")
    press(browser, "j")
    wait_for(browser, f"document.querySelector('.wall .tile.current')?.dataset.number === '{second}'")
    press(browser, "h")
    wait_for(browser, "document.querySelectorAll('.column .heat').length > 0")
    browser.execute_script("document.querySelector('#heat').focus()")
    press(browser, "\ue014")  # the slider, by an arrow; letters go on meaning what they mean
    wait_for(browser, "location.hash.endsWith('heat=85')")
    press(browser, "h")
    wait_for(browser, "document.querySelectorAll('.heat').length === 0")
    press(browser, "?")
    assert browser.execute_script("return document.querySelector('#help').open")
    press(browser, "\ue00c")  # Escape: the help, then the neighbours
    press(browser, "\ue00c")
    wait_for(browser, f"{RESULTS} === 0")
    browser.execute_script(
        "document.querySelector('#file').addEventListener('click', (e) => { window.asked = true; e.preventDefault() })"
    )
    press(browser, "u")
    assert browser.execute_script("return window.asked")
    press(browser, "/")
    assert browser.execute_script("return document.activeElement.id") == "class"
    press(browser, "coffee", "\ue007")
    first = browser.execute_script("return document.querySelector('#class').value")
    wait_for(browser, "document.activeElement === document.body")
    press(browser, "\ue015")  # from there the arrows go on
    wait_for(browser, f"{focused} === '{first}'")


def test_a_hostile_name_is_a_name_and_its_link_leads_back(browser, hostile_names):
    numbers = "return fetch('/api/find?name=' + encodeURIComponent(arguments[0])).then((answer) => answer.json())"
    for name in hostile_names:
        place = f"chelsea/{name}"
        number = browser.execute_script(numbers, place)["number"]
        browser.execute_script("location.hash = `#n=${arguments[0]}`", number)
        shown = f"document.querySelector('.heading h2')?.textContent === {json.dumps(place)}"
        wait_for(browser, shown)
        link = browser.current_url
        browser.get("about:blank")
        browser.get(link)
        wait_for(browser, shown)
        assert browser.title == " ".join(f"{place} · mimexport".split())
        assert browser.execute_script("return document.querySelectorAll('h2 *, .caption *:not(span)').length") == 0
        assert browser.execute_script("return document.querySelector('#results').scrollWidth") <= 1200


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


def test_heatmaps_in_view_come_first_and_those_that_left_never(browser):
    asked = browser.execute_async_script("""
        const done = arguments[0], asked = []
        window.fetch = (path) => (asked.push(path), new Promise(() => {}))
        import('/page/heat.js').then(({ showHeat }) => {
            const frames = Array.from({ length: 6 }, (_, at) => {
                const frame = document.createElement('span')
                frame.style = `position: fixed; left: 0; width: 9px; height: 9px; top: ${at < 3 ? 5000 : 20 * at}px`
                document.body.append(frame)
                showHeat(frame, 0, at, 80)
                return frame
            })
            frames[4].remove()
            showHeat(frames[0], 0, 0, 0)
            setTimeout(() => done(asked), 0)
        })
    """)
    assert asked == ["/api/heatmaps/0/3", "/api/heatmaps/0/5", "/api/heatmaps/0/1", "/api/heatmaps/0/2"]


def test_on_another_address_the_key_opens_the_page_and_leaves_the_address(driver, page_with_key):
    bare = urlsplit(page_with_key.url)._replace(query="").geturl()
    driver.get(bare)
    assert "ends in ?key=" in driver.find_element("tag name", "body").text
    driver.get(page_with_key.url)
    wait_for(driver, f"{READY} && {LOADED} === 12")
    assert "key" not in driver.current_url
    driver.execute_script("document.querySelector('.wall .tile').click()")
    wait_for(driver, f"{RESULTS} === 1 && document.querySelector('.query img').naturalWidth === 120")
    driver.get_log("browser")


def test_an_image_that_goes_a_server_that_stops_and_one_with_other_images(driver, toy_artifact, folder, tmp_path):
    for name in ("00.png", "01.png", "02.png"):
        shutil.copy(folder / "coffee" / name, tmp_path / name)
    arguments = (toy_artifact, "--images", tmp_path, "--cache", tmp_path / "cache", "--no-check-reference")
    note = "document.querySelector('#note')"
    with running_page(*arguments, log=tmp_path / "log") as page:
        driver.get(page.url)
        wait_for(driver, f"{READY} && {LOADED} === 3 && fetch('/api/state').then((a) => a.json()).then((a) => a.full)")
        (tmp_path / "01.png").unlink()
        driver.execute_script("document.querySelector('.wall .tile[data-number=\"1\"]').click()")
        wait_for(driver, "document.querySelectorAll('.neighbours li').length === 2")
        wait_for(driver, "document.querySelector('.query.broken') !== null")
    driver.execute_script("document.querySelector('.wall .tile[data-number=\"0\"]').click()")
    wait_for(driver, f"{note}.textContent.startsWith('The server does not answer')")
    (tmp_path / "02.png").unlink()
    driver.execute_script("window.before = true")
    with running_page(*arguments, "--port", str(urlsplit(page.url).port), log=tmp_path / "log"):
        driver.execute_script("dispatchEvent(new Event('focus'))")
        wait_for(driver, f"!window.before && {READY} && {LOADED} === 1")
        wait_for(driver, "document.querySelector('.column .error')?.textContent === 'no other image is embedded'")
    driver.get_log("browser")
