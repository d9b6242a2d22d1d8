from kpaas_lab.market.keys import fingerprint, new_key, same, well_formed


def test_a_key_is_random_and_has_the_promised_form() -> None:
    keys = [new_key() for _ in range(200)]
    assert len({key.text for key in keys}) == 200
    for key in keys:
        assert len(key.text) == 47
        assert key.text.startswith("kpl_")
        assert well_formed(key.text)
        assert key.prefix == key.text[:12]
        assert key.sha256 == fingerprint(key.text)
        assert len(key.sha256) == 64


def test_the_text_stands_in_no_repr() -> None:
    key = new_key()
    assert key.text not in repr(key)
    assert key.text not in str(key)
    assert key.prefix in repr(key)


def test_what_is_no_key() -> None:
    good = new_key().text
    for text in (
        "",
        good[:-1],
        good + "a",
        good + "\n",
        "KPL_" + good[4:],
        good.replace("kpl_", "kpl-"),
        "kpl_" + "é" * 43,
    ):
        assert not well_formed(text), text
    assert well_formed(good)


def test_fingerprints_are_compared_whole() -> None:
    key = new_key()
    assert same(key.sha256, fingerprint(key.text))
    assert not same(key.sha256, key.sha256[:-1])
    assert not same(key.sha256, "é")
