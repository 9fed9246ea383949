"""Pairs found in texts, and damaged texts."""

from __future__ import annotations

import pytest
import torch

from st_plugins.adaptation.race.found_pairs import damaged, found_pairs, parts_of


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A title\nThe body  of it.\nMore of it.", ["A title", "The body of it. More of it."]),
        ("The dog barks. The cat runs away!", ["The dog barks.", "The cat runs away!"]),
        # No sentence ends before a small letter; a part of two words is none.
        ("It is approx. seven euros here now again", ["It is approx. seven", "euros here now again"]),
        ("one two three four five six seven eight", ["one two three four", "five six seven eight"]),
        ("one two three", []),
        ("今天天气很好。我们去公园玩。", ["今天天气很好。", "我们去公园玩。"]),
        ("今天天气很好我们去公园", ["今天天气很", "好我们去公园"]),
        ("  \n ", []),
    ],
)
def test_parts(text: str, parts: list[str]) -> None:
    assert parts_of(text) == parts


def test_a_pair_of_neighbors_is_drawn_from_each_text_that_has_one() -> None:
    texts = ["First it rains. Then it snows. Then it shines.", "short", "a b c d e f g h"]
    drawn = {found_pairs(texts, torch.Generator().manual_seed(seed))[0] for seed in range(20)}
    assert drawn == {("First it rains.", "Then it snows."), ("Then it snows.", "Then it shines.")}
    assert found_pairs(texts, torch.Generator())[1:] == [("a b c d", "e f g h")]


def test_damaged_texts_keep_two_words_of_five_in_their_order() -> None:
    words = [str(number) for number in range(10)]
    (text,) = damaged([" ".join(words)], torch.Generator().manual_seed(3))
    kept = text.split()
    assert len(kept) == 4 and kept == sorted(kept, key=int)
    assert damaged(["alone"], torch.Generator()) == ["alone"]
