"""Anonymised pairs: reader, tokenizer and masks against plain loops, and every bad input."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig

from st_plugins.matching import AnonymizedPairs, build_tokenizer
from st_plugins.methods.label_token.masking import IGNORED, PairMasking, features_of
from st_plugins.methods.label_token.tokens import integer_token_ids, label_token_ids

TRAIN = AnonymizedPairs(["12 7 7 3", "3 4 12"], ["7 12 9", "8 10"], ["1", "0"])
TEST = AnonymizedPairs(["5 12", "7"], ["12 90 90", "10"])


def _write(folder: Path, text: str, name: str = "pairs.tsv") -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_a_file_is_read(tmp_path: Path, name: str) -> None:
    pairs = AnonymizedPairs.read(_write(tmp_path, "12 7\t 7  9\t1\r\n3\t0\t\r\n4 4\t5\t0\n\n", name))
    assert pairs.pairs == [("12 7", "7 9"), ("3", "0"), ("4 4", "5")]
    assert pairs.gold == ["1", None, "0"] and pairs.labeled == 2 and len(pairs) == 3
    unlabelled = AnonymizedPairs.read(_write(tmp_path, "1\t2\n3\t4\n"))
    assert unlabelled.gold == [None, None] and unlabelled.labeled == 0
    named = AnonymizedPairs.read(_write(tmp_path, "1\t2\tsame\n"), labels=("other", "same"))
    assert named.gold == ["same"] and named.without_labels().gold == [None]
    assert named.without_labels().labels == ("other", "same")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\ttext\n", r"pairs.tsv:1: first text: token 'label' is not an integer; .*without header"),
        ("1\t2\n1 x\t2\n", r":2: first text: token 'x' is not an integer"),
        ("1\t2\n1\t2 3.5\n", r":2: second text: token '3.5' is not an integer"),
        ("1\t2\n1\t-3\n", r":2: second text: token '-3' is negative; tokens must be integers from 0 on"),
        ("1\t2\n007\t3\n", r":2: first text: token '007' has leading zeros; write it as 7"),
        ("1\t٣\n", r":1: second text: token '٣' is not an integer"),
        ("1\t2\n\t3\n", r":2: first text: the text is empty; every text needs at least one integer"),
        ("1\t2\n1\t \n", r":2: second text: the text is empty"),
        ("1\n", r":1: 1 columns; a line has two texts and maybe a label"),
        ("1\t2\t0\t9\n", r":1: 4 columns"),
        ("1\t2\t0\n1\t2\n", r":2: 2 columns, but line 1 has 3"),
        ("1\t2\t0\n\n1\t2\t1\n", r":2: 1 columns, but line 1 has 3"),
        ("1\t2\t0\n1\t2\t2\n", r":2: label '2' is unknown; it must be one of '0', '1', or pass other labels="),
        ("", r"there is no line; write one pair a line"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnonymizedPairs.read(_write(tmp_path, text))


def test_broken_pairs_are_refused() -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        AnonymizedPairs.read("nowhere.tsv")
    with pytest.raises(ValueError, match=r"second\[1\]: token 'cat' is not an integer"):
        AnonymizedPairs(["1", "2"], ["3", "cat"])
    with pytest.raises(ValueError, match=r"must be equally long, got {'first': 2, 'second': 1, 'gold': 2}"):
        AnonymizedPairs(["1", "2"], ["3"])
    with pytest.raises(ValueError, match=r"gold\[0\]: label 'yes' is unknown"):
        AnonymizedPairs(["1"], ["3"], ["yes"])
    for classes in (("1",), ("1", "1"), ("", "1"), (1, 2)):
        with pytest.raises(ValueError, match="labels must be at least two different names"):
            AnonymizedPairs(["1"], ["3"], labels=classes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be added"):
        _ = TEST + AnonymizedPairs(["1"], ["3"], labels=("a", "b"))


def test_the_vocabulary_is_ordered_by_frequency_and_then_by_integer() -> None:
    both = TRAIN + TEST
    counts: dict[str, int] = {}
    for text in [*both.first, *both.second]:
        for token in text.split(" "):
            counts[token] = counts.get(token, 0) + 1
    for minimum in (1, 2, 4):
        expected = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[LABEL:0]", "[LABEL:1]"]
        for count in range(max(counts.values()), minimum - 1, -1):
            expected += sorted((token for token in counts if counts[token] == count), key=int)
        tokenizer = build_tokenizer(both, minimum)
        assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == expected
        assert tokenizer.convert_ids_to_tokens(integer_token_ids(tokenizer)) == expected[7:]
        assert label_token_ids(tokenizer) == {"0": 5, "1": 6}


def test_a_text_and_a_pair_have_their_form(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(TRAIN, minimum_frequency=2, max_seq_length=8)
    text = tokenizer("12 4 7")
    assert tokenizer.convert_ids_to_tokens(text["input_ids"]) == ["[CLS]", "12", "[UNK]", "7", "[SEP]"]
    pair = tokenizer("12 7", "3")
    tokens = ["[CLS]", "[MASK]", "12", "7", "[SEP]", "3", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]) == tokens
    assert pair["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1]
    long = tokenizer("12 7 3 12 7", "3 12", truncation=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(long) == ["[CLS]", "[MASK]", "12", "7", "[SEP]", "3", "12", "[SEP]"]
    # What every host does: save beside an encoder's configuration, load by AutoTokenizer.
    BertConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for arguments in (("12 4 7",), ("12 7", "3")):
        assert dict(again(*arguments)) == dict(tokenizer(*arguments))
    assert again.get_vocab() == tokenizer.get_vocab() and again.model_max_length == 8
    assert again.mask_token_id == tokenizer.mask_token_id


def test_a_tokenizer_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="minimum_frequency=9 leaves no token: the most frequent of the 7 occurs 3"):
        build_tokenizer(TRAIN, 9)
    with pytest.raises(ValueError, match="minimum_frequency=1 leaves no token"):
        build_tokenizer(AnonymizedPairs([], []))
    with pytest.raises(ValueError, match="minimum_frequency must be at least 1, got 0"):
        build_tokenizer(TRAIN, 0)
    with pytest.raises(ValueError, match="max_seq_length must be at least 6, to hold a pair; got 5"):
        build_tokenizer(TRAIN, max_seq_length=5)
    with pytest.raises(ValueError, match="no tokens for labels; make one with build_tokenizer"):
        label_token_ids(_without_labels())


def _without_labels() -> Any:
    class Plain:
        def get_vocab(self) -> dict[str, int]:
            return {"[CLS]": 0, "a": 1}

    return Plain()


def test_masks_are_what_the_draws_say() -> None:
    tokenizer = build_tokenizer(TRAIN + TEST, minimum_frequency=2)
    rows: list[tuple[str, str, str | None]] = [("12 7 4 3", "7 12", "1"), ("3", "10 12 7", None), ("7", "9", "0")] * 4
    masking = PairMasking(tokenizer, 0.4, True, torch.Generator().manual_seed(5))
    before = torch.get_rng_state()
    batch = masking(rows)
    assert torch.equal(before, torch.get_rng_state())
    draws = torch.Generator().manual_seed(5)
    swapped = torch.rand(len(rows), generator=draws)
    pairs = [
        (second, first) if float(draw) < 0.5 else (first, second)
        for (first, second, _), draw in zip(rows, swapped, strict=True)
    ]
    assert pairs[0] != pairs[3] or pairs[0] != pairs[6] or pairs[0] != pairs[9]
    plain = features_of(tokenizer, pairs, True)
    shape = plain["input_ids"].shape
    asked, fate = torch.rand(shape, generator=draws), torch.rand(shape, generator=draws)
    integers = integer_token_ids(tokenizer)
    others = torch.randint(len(integers), shape, generator=draws)
    for row in range(shape[0]):
        for place in range(shape[1]):
            token = int(plain["input_ids"][row, place])
            seen, label = token, IGNORED
            if token in integers and float(asked[row, place]) < 0.4:
                label = token
                if float(fate[row, place]) < 0.8:
                    seen = tokenizer.mask_token_id
                elif float(fate[row, place]) >= 0.9:
                    seen = integers[int(others[row, place])]
            if place == 1:
                known = rows[row][2]
                label = IGNORED if known is None else {"0": 5, "1": 6}[known]
                assert seen == tokenizer.mask_token_id
            assert int(batch["input_ids"][row, place]) == seen
            assert int(batch["labels"][row, place]) == label
    assert torch.equal(batch["attention_mask"], plain["attention_mask"])
    assert torch.equal(batch["token_type_ids"], plain["token_type_ids"])


def test_shares_of_the_masks() -> None:
    tokens = [str(number) for number in range(100, 200)]
    pairs = AnonymizedPairs([" ".join(tokens)], [" ".join(tokens)])
    tokenizer = build_tokenizer(pairs, max_seq_length=512)
    masking = PairMasking(tokenizer, 0.15, False, torch.Generator().manual_seed(0))
    rows: list[tuple[str, str, str | None]] = [(pairs.first[0], pairs.second[0], "1")] * 100
    batch = masking(rows)
    plain = features_of(tokenizer, pairs.pairs * 100, True)["input_ids"]
    content = torch.isin(plain, torch.tensor(integer_token_ids(tokenizer)))
    asked = (batch["labels"] != IGNORED) & content
    fates = Counter(
        "masked" if seen == tokenizer.mask_token_id else "same" if seen == token else "other"
        for seen, token in zip(batch["input_ids"][asked].tolist(), plain[asked].tolist(), strict=True)
    )
    total = sum(fates.values())
    assert content.sum() == 20_000 and abs(total / 20_000 - 0.15) < 0.01
    assert abs(fates["masked"] / total - 0.8) < 0.03 and abs(fates["other"] / total - 0.1) < 0.03
    assert torch.equal(batch["input_ids"][~asked], plain[~asked])
    again = PairMasking(tokenizer, 0.15, False, torch.Generator().manual_seed(0))
    assert torch.equal(again(rows)["input_ids"], batch["input_ids"])
    assert not torch.equal(again(rows)["input_ids"], batch["input_ids"])  # new masks every time


def test_classes_are_counted_when_pairs_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.tsv").write_text("1\t2\t1\n3\t4\t0\n5\t6\t\n7\t8\t1\n")
    with caplog.at_level("INFO", logger="st_plugins"):
        AnonymizedPairs.read(tmp_path / "x.tsv")
    assert "x.tsv: 2 classes: '0' 1, '1' 2, 1 pairs without a label" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("12", ["3"]), "first must be a list, got one string"),
        ((["1"], [None]), r"second\[0\] is 'None', a NoneType; it must be text"),
        (([1], ["2"]), r"first\[0\] is '1', a int; it must be text"),
        ((["1"], ["2"], [], "01"), "labels must be a list, got one string"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        AnonymizedPairs(*arguments)


def test_columns_may_be_read_only_once() -> None:
    assert AnonymizedPairs((text for text in ["1"]), ["2"]).pairs == [("1", "2")]  # type: ignore[arg-type]
