"""The hub's pages, rendered as the hub renders them."""

import html.parser
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader
from jupyterhub._data import DATA_FILES_PATH
from markupsafe import Markup

from hub_config import language, names
from hub_config.slice_cards import cards
from kpaas_lab import i18n
from kpaas_lab.market.identity import Person
from kpaas_lab.market.rendering import Pages
from kpaas_lab.market.services import from_environment as market_settings
from kpaas_lab.slices import SliceCapacity, load_catalogue

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "hub_config" / "templates"
PAGES = sorted(path.name for path in TEMPLATES.glob("*.html") if path.name not in {"slices.html", "admin.html"})
EVIL = "<script>alert('x')</script>\"'&"
ALLOWED = {"en", "ko"}


def environment() -> Environment:
    upstream = Path(DATA_FILES_PATH) / "templates"
    loader = ChoiceLoader(
        [PrefixLoader({"templates": FileSystemLoader(upstream)}, "/"),
         FileSystemLoader([*language.template_paths(), str(upstream)])]
    )  # fmt: skip
    return Environment(loader=loader, autoescape=True)


def spawner(**facts: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"ready": False, "active": False, "user_options": {}, "options_form": "x", **facts})


def person(name: str = "ann", **server: Any) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, escaped_name="ann", json_escaped_name="ann", url="/user/ann/", spawner=spawner(**server)
    )


def render(page: str, **values: Any) -> str:
    user = values.pop("user", person())
    namespace = {
        "base_url": "/hub/", "prefix": "/", "user": user, "login_url": "/hub/login", "logout_url": "/hub/logout",
        "static_url": lambda path, **_: f"/hub/static/{path}", "version_hash": "", "services": [],
        "parsed_scopes": {}, "xsrf_token": "token", "t": language.t, "t_attr": language.t_attr,
        "is_name": names.is_name, "no_spawner_check": False,
        "default_server": user.spawner if user else None, "url": "/somewhere", "username": "",
        "authenticator_login_url": "/hub/login", "xsrf": "token", "progress_url": "/progress",
        "spawner_options_form": Markup("<p>form</p>"), "status_code": 500, "spawn_url": "/hub/spawn/ann",
    }  # fmt: skip
    return environment().get_template(page).render(**{**namespace, **values})


class Checker(html.parser.HTMLParser):
    """Tags that close, ids that are there once."""

    VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in self.VOID and tag not in {"path", "rect", "circle"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in {"path", "rect", "circle"}:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")


@pytest.fixture
def korean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message has a Korean text: «…» around it."""

    class Marked(i18n.gettext.NullTranslations):
        def gettext(self, message: str) -> str:
            return f"«{message}»"

    both = {"ko": Marked(), "en": i18n.gettext.NullTranslations()}
    monkeypatch.setattr(i18n, "_catalogue", both.__getitem__)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("who", ["somebody", "nobody"])
@pytest.mark.usefixtures("korean")
def test_every_page_is_well_formed_and_says_everything_twice(page: str, who: str) -> None:
    user = person() if who == "somebody" or page in {"home.html", "spawn_pending.html"} else None
    text = render(page, user=user)
    checker = Checker()
    checker.feed(text)
    assert not checker.problems
    assert not checker.open
    assert len(set(checker.ids)) == len(checker.ids)
    assert text.count('class="t" lang="en"') == text.count('class="t" lang="ko"') > 0
    assert 'data-language="ko"' in text
    assert 'data-language="en"' in text
    # No sentence outside the spans of both languages: what is left of the page's body is names and signs.
    body = text[text.index("</noscript>") : text.index('<div class="modal')]
    body = re.sub(r"<(script|style|svg).*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'<span class="t" lang="(en|ko)">.*?</span>', "", body, flags=re.DOTALL)
    words = re.sub(r"<[^>]*>", " ", body).split()
    assert set(words) <= {"K-PaaS", "Lab", "KO", "EN", "ann", "500", "form"}, words


@pytest.mark.parametrize("page", PAGES)
def test_hostile_values_are_text(page: str) -> None:
    text = render(
        page, user=person(EVIL, ready=True, active=True, user_options={"slice": EVIL}), username=EVIL,
        login_error="wrong", error_message=EVIL, message=EVIL, failed=True, failed_message=EVIL, status_code=418,
        for_user=person("bob"), status_message=EVIL,
    )  # fmt: skip
    assert "<script>alert" not in text


@pytest.mark.parametrize(
    ("name", "says"), [("../bob", "The name ../bob can"), ("Ann", "password is wrong"), ("", "password is wrong")]
)
def test_a_log_in_that_fails_says_why(name: str, says: str) -> None:
    assert says in render("login.html", user=None, login_error="Invalid", username=name)


def test_only_admins_see_admin() -> None:
    assert "/hub/admin" not in render("home.html")
    assert "/hub/admin" in render("home.html", parsed_scopes={"admin-ui": None})


@pytest.mark.parametrize("admin", [False, True])
def test_the_market_has_the_same_navigation(admin: bool, tmp_path: Path) -> None:
    market = Pages(market_settings({"KPAAS_LAB_HOME": str(tmp_path)}))
    base = market._environment.get_template("base.html")
    theirs = base.render(person=Person("ann", admin=admin), here="/", back="/")
    ours = render("home.html", parsed_scopes={"admin-ui": None} if admin else {})
    links = re.compile(r'<a href="([^"]+)"[^>]*>(?:<span class="t" lang="en">)?([^<]+)<', re.DOTALL)
    navigation = [links.findall(text[text.index("<nav") : text.index("</nav>")]) for text in (ours, theirs)]
    assert len(navigation[0]) == 6 + admin
    assert navigation[0] == navigation[1]


def catalogue() -> list[SliceCapacity]:
    profiles = load_catalogue(ROOT / "hub_config" / "slices.yaml")
    return [SliceCapacity(profile=profile, total=3, free=index % 2) for index, profile in enumerate(profiles)]


def test_cards_are_radio_buttons_of_one_group_and_the_first_free_one_is_chosen() -> None:
    text = str(cards(catalogue(), {}))
    assert text.count('type="radio" name="slice"') == len(catalogue())
    checked = re.findall(r'value="([^"]+)" required\s+checked', text)
    assert checked == ["cpu-large"]
    assert text.count("disabled>") == 2
    assert 'type="submit"' in text
    assert not re.search(r'type="submit"\s+disabled', text)


def test_the_slice_of_the_last_time_is_chosen_where_it_is_free() -> None:
    assert re.findall(r'value="([^"]+)" required\s+checked', str(cards(catalogue(), {"slice": "mps-50"}))) == ["mps-50"]
    assert re.findall(r'value="([^"]+)" required\s+checked', str(cards(catalogue(), {"slice": EVIL}))) == ["cpu-large"]


def test_nothing_free_is_said_and_no_start_is_offered() -> None:
    none = [entry.model_copy(update={"free": 0}) for entry in catalogue()]
    text = str(cards(none, {}))
    assert "Everything is in use now" in text
    assert re.search(r'type="submit"\s+disabled', text)


@pytest.mark.usefixtures("korean")
def test_attributes_hold_both_languages() -> None:
    attribute = str(language.t_attr("title", 'Say "{name}"', name="<b>"))
    assert attribute.startswith('title="Say &#34;&lt;b&gt;&#34;" data-t=')
    assert "«Say" in attribute
