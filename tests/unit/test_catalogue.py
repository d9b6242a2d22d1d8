"""Every text that a person reads is marked for translation, and the Korean catalogue has it."""

import ast
import functools
import gettext
import html.parser
import io
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.catalog import Message
from babel.messages.extract import extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from jinja2 import Environment, nodes

ROOT = Path(__file__).resolve().parents[2]
LOCALE = ROOT / "kpaas_lab" / "locale"
PO = LOCALE / "ko" / "LC_MESSAGES" / "kpaas_lab.po"
TEMPLATES = sorted([*ROOT.glob("hub_config/templates/*.html"), *ROOT.glob("kpaas_lab/market/templates/*.html")])
SOURCES = sorted([*ROOT.glob("hub_config/**/*.py"), *ROOT.glob("kpaas_lab/**/*.py")])

HANGUL = re.compile("[가-힣]")
# A particle whose form depends on what is filled in before it.
DEPENDENT_PARTICLE = re.compile(
    r"\}['\"”’`]?(을|를|이|가|은|는|과|와|으로|로)(?![가-힣])|\([으을를이가은는과와]+\)[를가는와로]?"
)
# Options, attributes and calls, names with an underscore: what a person types.
CODE = re.compile(
    r"(?<![\w.{])(?:--[a-z-]+|[a-z]\w*(?:\.[a-z_]\w*)+(?:\(\))?|[a-z]\w*_\w+|\w+=|\w+\(\))", re.ASCII | re.I
)
SAME_WORDS = {"K-PaaS", "Lab", "KO", "EN", "English", "Language", "p50", "p95", "UTC"}  # names and signs
SAID_IN = {"alt", "aria-label", "placeholder", "title"}  # attributes that are read out or shown


@functools.cache
def korean() -> dict[str, Message]:
    with PO.open("rb") as file:
        catalogue = read_po(file, locale="ko", abort_invalid=True)
    assert not catalogue.obsolete, f"obsolete, `make messages-update` drops them: {list(catalogue.obsolete)}"
    return {str(message.id): message for message in catalogue if message.id}


@functools.cache
def gathered() -> dict[str, str]:
    """Each message of the sources, and the first file that has it."""
    with (LOCALE / "babel.cfg").open(encoding="utf-8") as file:
        methods, options = parse_mapping_cfg(file)
    found: dict[str, str] = {}
    for path, _line, message, _comments, _context in extract_from_dir(ROOT, methods, options):
        assert isinstance(message, str), f"{path}: {message!r} has plural forms"
        found.setdefault(message, path)
    return found


def fields(text: str) -> list[object]:
    """What is filled in: `{name!r:>8}` and `%(default)s`; sorted, for languages differ in order."""
    braces = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    return sorted(map(str, [*braces, *re.findall(r"%\(\w+\)\w", text)]))


def test_every_message_has_korean() -> None:
    missing = [f"{path}: {message!r}" for message, path in gathered().items()
               if message not in korean() or not korean()[message].string]  # fmt: skip
    assert not missing, "without Korean, `make messages-update` adds them to the .po:\n" + "\n".join(missing)


def test_the_catalogue_has_nothing_else() -> None:
    unused = sorted(set(korean()) - set(gathered()))
    assert not unused, "no longer used, `make messages-update` drops them"
    assert not [message.id for message in korean().values() if message.fuzzy]


def test_korean_fills_in_the_same_fields() -> None:
    wrong = [id_ for id_, message in korean().items() if fields(id_) != fields(str(message.string))]
    assert not wrong


def test_korean_names_the_same_code() -> None:
    texts = [(id_, str(message.string)) for id_, message in korean().items()]
    assert not [(english, text) for english, text in texts if set(CODE.findall(english)) != set(CODE.findall(text))]


def test_korean_keeps_the_space_around_a_text() -> None:
    def edges(text: str) -> tuple[str, str]:
        return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]

    assert not [id_ for id_, message in korean().items() if edges(id_) != edges(str(message.string))]


def test_what_has_no_hangul_has_no_words_either() -> None:
    same = [id_ for id_, message in korean().items() if not HANGUL.search(str(message.string))]
    words = {word for id_ in same for word in re.findall("[A-Za-z]{2,}", re.sub(r"\{.*?\}", "", id_))}
    assert words <= {"Python", "the", "supervisor"}, words


def test_no_particle_depends_on_what_is_filled_in() -> None:
    wrong = [message.string for message in korean().values() if DEPENDENT_PARTICLE.search(str(message.string))]
    assert not wrong


def test_the_compiled_catalogue_says_the_same() -> None:
    with PO.open("rb") as file:
        catalogue = read_po(file, locale="ko")
    compiled = io.BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    translations = gettext.GNUTranslations(compiled)
    assert {id_: translations.gettext(id_) for id_ in korean()} == {id_: m.string for id_, m in korean().items()}


# -- what is not marked ----------------------------------------------------------------------------------------------


DATA = nodes.TemplateData


class Texts(html.parser.HTMLParser):
    """Texts and spoken attributes of a page; scripts and styles are none."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = ""
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.silent = tag if tag in {"script", "style", "code", "svg"} else self.silent
        self.found += [value for name, value in attrs if name in SAID_IN and value]

    def handle_endtag(self, tag: str) -> None:
        self.silent = "" if tag == self.silent else self.silent

    def handle_data(self, data: str) -> None:
        self.found += [] if self.silent else [data]


def unmarked_constants(node: nodes.Node) -> Iterator[str]:
    """Strings in expressions that aren't the argument of a translation."""
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in {"_", "t", "t_attr"}:
        return
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        yield node.value
    for child in node.iter_child_nodes():
        yield from unmarked_constants(child)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_a_page_says_nothing_unmarked(path: Path) -> None:
    tree = Environment(autoescape=True).parse(path.read_text(encoding="utf-8"))
    page = Texts()
    classes = {data for block in tree.find_all(nodes.Block) if block.name == "width" for data in block.find_all(DATA)}
    page.feed("".join(data.data for data in tree.find_all(DATA) if data not in classes))
    words = {word for text in page.found for word in re.findall(r"[A-Za-z][\w-]+", text)}
    assert words <= SAME_WORDS, f"outside of t() and _(): {words - SAME_WORDS}"
    sentences = [text for text in unmarked_constants(tree) if re.match(r"[A-Z][a-z]* [a-z]", text)]
    assert not sentences


def name_of(expression: ast.expr) -> str:
    return expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")


@functools.cache
def modules() -> dict[Path, ast.Module]:
    # bootstrap.py runs before there is an environment, so before there is a catalogue.
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES if path.name != "bootstrap.py"}


@functools.cache
def errors() -> frozenset[str]:
    """`LabError` and what is derived from it: errors that a person reads."""
    bases = {
        node.name: {name_of(base) for base in node.bases}
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found, before = {"LabError"}, 0
    while len(found) > before:
        before = len(found)
        found |= {name for name, of in bases.items() if of & found}
    return frozenset(found)


def is_text(value: ast.expr) -> bool:
    """A literal with words in it, an f-string too."""
    if isinstance(value, ast.JoinedStr):
        value = ast.Constant("".join(str(part.value) for part in value.values if isinstance(part, ast.Constant)))
    return isinstance(value, ast.Constant) and isinstance(value.value, str) and " " in value.value.strip()


def is_wrong(call: ast.Call) -> bool:
    """An error or a help text that isn't marked; or a marked text that is filled in before it is translated."""
    name = name_of(call.func)
    if name in {"_", "N_"} and call.args:
        text = call.args[0]
        return isinstance(text, ast.JoinedStr | ast.BinOp) or (
            isinstance(text, ast.Call) and name_of(text.func) == "format"
        )
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    said = [options[name] for name in ("hint", "help") if name in options and "config" not in options]  # traitlets
    said += call.args[:1] if name in errors() else []
    return any(map(is_text, said))


def test_errors_and_help_texts_are_marked() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:150]}"
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and is_wrong(node)
    ]
    assert not wrong, "\n".join(wrong)
