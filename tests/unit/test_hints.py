"""What a text tells a person to type exists: `lab.train(...)`, `run.resume()`, `lab.subscriptions`."""

import re
from collections.abc import Iterator

from babel.messages.extract import extract_from_dir
from babel.messages.frontend import parse_mapping_cfg

from kpaas_lab import models
from kpaas_lab.lab import Lab
from kpaas_lab.market.client import Subscription
from kpaas_lab.serving import Endpoint
from kpaas_lab.training import Run, checkpoint
from tests.unit.test_catalogue import LOCALE, ROOT

OWNERS = {"lab": Lab, "run": Run, "endpoint": Endpoint, "api": Subscription, "checkpoint": checkpoint, "models": models}
NAMED = re.compile(rf"(?<![\w/])({'|'.join(OWNERS)})(?:\[[^]]*\])?\.([a-z_]+)(\()?")
ITEMS = {"runs": Run, "endpoints": Endpoint, "subscriptions": Subscription}
ITEM = re.compile(r"lab\.(runs|endpoints|subscriptions)\[[^]]*\]\.([a-z_]+)(\()?")


def suggestions() -> Iterator[tuple[object, str, bool, str]]:
    """What has the name, the name, whether it is called, and the whole text."""
    with (LOCALE / "babel.cfg").open(encoding="utf-8") as file:
        methods, options = parse_mapping_cfg(file)
    for _path, _line, message, _comments, _context in extract_from_dir(ROOT, methods, options):
        for owner, name, called in NAMED.findall(str(message)):
            yield OWNERS[owner], name, bool(called), str(message)
        for owner, name, called in ITEM.findall(str(message)):
            yield ITEMS[owner], name, bool(called), str(message)


def test_what_is_suggested_can_be_typed() -> None:
    found = list(suggestions())
    assert len(found) > 10, "the texts are no longer found"
    for owner, name, called, message in found:
        assert hasattr(owner, name), message
        assert callable(getattr(owner, name)) or not called, message
