"""The teacher's inputs from the student's ids: formats, padding, prompts, truncation, special tokens, errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import processors

from st_plugins.methods.virt.inputs import PairInputs, Span, check_tokenizers, take

Model = Callable[..., SentenceTransformer]
Teacher = Callable[..., CrossEncoder]
FIRST = ["a man is playing guitar .", "dog", "the big red ball", "two three"]
SECOND = ["the man", "a dog is running in the park .", "unhappy", "a book on a street"]
BERT = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
ROBERTA = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] [SEP] $B [SEP]"}
OPENING = {"single": "[CLS] $A", "pair": "[CLS] $A [CLS] $B:1"}
NONE = {"single": "$A", "pair": "$A $B"}


def formatted(model: Any, template: dict[str, str], types: bool = False) -> Any:
    """Give a model a tokenizer with other special tokens around texts."""
    model = copy.deepcopy(model)
    tokenizer = model.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("[CLS]", "[SEP]")}
    used = [(token, number) for token, number in ids.items() if token in "".join(template.values())]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(**template, special_tokens=used)
    if types:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return model


def columns(inputs: PairInputs, student: SentenceTransformer, *texts: list[str], **options: Any) -> Any:
    features = [student.preprocess(column, **options) for column in texts]
    return features, [inputs.column(column, index) for index, column in enumerate(features)]


def tokens(ids: torch.Tensor, span: Span, row: int) -> list[int]:
    begin, length = int(span.starts[row]), int(span.lengths[row])
    return ids[row, begin : begin + length].tolist()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("template", [BERT, ROBERTA, OPENING, NONE])
def test_the_pair_is_what_the_teacher_makes_of_the_texts(
    make_model: Model, make_teacher: Teacher, template: dict[str, str], types: bool, side: str
) -> None:
    student, teacher = (formatted(model, template, types) for model in (make_model(), make_teacher()))
    student.tokenizer.padding_side = side
    inputs = PairInputs(student, teacher)
    features, texts = columns(inputs, student, FIRST, SECOND)
    pair = inputs.teacher_input(*texts)
    expected = teacher.preprocess(list(zip(FIRST, SECOND, strict=True)))
    assert set(expected) == set(pair.features) and ("token_type_ids" in expected) == types
    for name, value in expected.items():
        found = pair.features[name]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    for column, own, other in zip(features, pair.student, pair.teacher, strict=True):
        for row in range(len(FIRST)):
            words = tokens(column["input_ids"], own, row)
            assert words and words == tokens(pair.features["input_ids"], other, row)
            assert not set(words) & {2, 3}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (BERT, [("[CLS] dog [SEP]", "a ball [SEP]")]),
        (ROBERTA, [("[CLS] dog [SEP]", "a ball [SEP]")]),
        (OPENING, [("[CLS] dog", "[CLS] a ball")]),
        (NONE, [("dog", "a ball")]),
    ],
)
def test_special_tokens_that_both_inputs_have_can_be_included(
    make_model: Model, make_teacher: Teacher, template: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    student, teacher = (formatted(model, template) for model in (make_model(), make_teacher()))
    inputs = PairInputs(student, teacher, include_special_tokens=True)
    features, texts = columns(inputs, student, ["dog", ""], ["a ball", "dog"])
    pair = inputs.teacher_input(*texts)
    for column, own, other, words in zip(features, pair.student, pair.teacher, expected[0], strict=True):
        ids = student.tokenizer.convert_tokens_to_ids(words.split())
        assert tokens(column["input_ids"], own, 0) == tokens(pair.features["input_ids"], other, 0) == ids
        assert int(own.lengths[1]) == int(other.lengths[1]) == 0  # a text without words


def test_a_prompt_is_no_part_of_the_pair(make_model: Model, make_teacher: Teacher) -> None:
    student, teacher = make_model(), make_teacher()
    for include in (False, True):
        inputs = PairInputs(student, teacher, include_special_tokens=include)
        features, texts = columns(inputs, student, FIRST, SECOND, prompt="the happy child : ")
        pair = inputs.teacher_input(*texts)
        expected = teacher.preprocess(list(zip(FIRST, SECOND, strict=True)))
        assert torch.equal(pair.features["input_ids"], expected["input_ids"])
        for column, own, other in zip(features, pair.student, pair.teacher, strict=True):
            words = tokens(column["input_ids"], own, 0)
            assert words == tokens(pair.features["input_ids"], other, 0)
            assert (2 in words, 3 in words) == (False, include)  # [CLS] stands before the prompt


def test_texts_are_truncated_before_the_pair_is_made(make_model: Model, make_teacher: Teacher) -> None:
    student, teacher = make_model(), make_teacher()
    student.max_seq_length = 5
    inputs = PairInputs(student, teacher)
    _, texts = columns(inputs, student, FIRST, SECOND)
    pair = inputs.teacher_input(*texts)
    cut = [[" ".join(text.split()[:3]) for text in column] for column in (FIRST, SECOND)]
    cut[1][2] = "unhappy"
    assert torch.equal(pair.features["input_ids"], teacher.preprocess(list(zip(*cut, strict=True)))["input_ids"])


def test_truncation_that_leaves_nothing_makes_an_empty_text(make_model: Model, make_teacher: Teacher) -> None:
    student, teacher = make_model(), make_teacher()
    student.max_seq_length = 2
    inputs = PairInputs(student, teacher)
    _, texts = columns(inputs, student, FIRST, SECOND)
    pair = inputs.teacher_input(*texts)
    assert pair.features["input_ids"].tolist() == [[2, 3, 3]] * 4
    assert all(not span.lengths.any() for span in (*pair.student, *pair.teacher))


def test_special_tokens_inside_a_text_stay_in_it(make_model: Model, make_teacher: Teacher) -> None:
    student, teacher = make_model(), make_teacher()
    inputs = PairInputs(student, teacher)
    _, texts = columns(inputs, student, ["a [SEP] dog [MASK]"], ["cat"])
    expected = teacher.preprocess([("a [SEP] dog [MASK]", "cat")])
    assert torch.equal(inputs.teacher_input(*texts).features["input_ids"], expected["input_ids"])


def test_take_copies_spans_with_their_gradients() -> None:
    tensor = torch.arange(12.0).view(2, 1, 6, 1).requires_grad_()
    taken = take(tensor, Span(torch.tensor([4, 1]), torch.tensor([2, 3]), 3))
    assert taken[0, 0, :2, 0].tolist() == [4, 5] and taken[1, 0, :, 0].tolist() == [7, 8, 9]
    taken[1].sum().backward()
    assert tensor.grad is not None and tensor.grad.flatten().tolist() == [0] * 7 + [1] * 3 + [0] * 2


def test_a_pair_longer_than_the_teacher_takes_is_named(make_model: Model, make_teacher: Teacher) -> None:
    student, teacher = make_model(), make_teacher()
    teacher.max_seq_length = 12
    inputs = PairInputs(student, teacher)
    _, texts = columns(inputs, student, ["dog", "a man is reading ."], ["dog", "a dog is running in the park ."])
    message = (
        r"pair 1 of the batch has 16 tokens, but the teacher takes 12: 'a man is reading .' \| 'a dog is running in "
        r"the park .'; set model.max_seq_length = 6, so that each text is truncated before"
    )
    with pytest.raises(ValueError, match=message):
        inputs.teacher_input(*texts)
    student.max_seq_length = 6
    _, texts = columns(inputs, student, FIRST, SECOND)
    inputs.teacher_input(*texts)  # the remedy works


def test_texts_that_may_be_too_long_are_told_in_advance(
    make_model: Model, make_teacher: Teacher, caplog: pytest.LogCaptureFixture
) -> None:
    student, teacher = make_model(), make_teacher()
    student.max_seq_length, teacher.max_seq_length = 17, 32
    PairInputs(student, teacher)
    assert "two texts of 17 tokens" in caplog.text and "model.max_seq_length = 16" in caplog.text
    caplog.clear()
    student.max_seq_length = 16
    PairInputs(student, teacher)
    assert not caplog.text


def test_a_row_that_is_not_one_text_is_named(make_model: Model, make_teacher: Teacher) -> None:
    student, teacher = make_model(), make_teacher()
    inputs = PairInputs(student, teacher)
    features = student.preprocess(["a dog", "the cat"])
    features["input_ids"][1, 0] = 5
    with pytest.raises(ValueError, match=r"text 1 of column 3 does not line up .*'a the cat \[SEP\]' is not one text"):
        inputs.column(features, 3)
    holes = student.preprocess(["a dog", "the cat"])
    holes["attention_mask"][0, 1] = 0
    with pytest.raises(ValueError, match="text 0 of column 0 does not line up"):
        inputs.column(holes, 0)


def test_flattened_features_are_refused(make_model: Model, make_teacher: Teacher) -> None:
    inputs = PairInputs(make_model(), make_teacher())
    with pytest.raises(ValueError, match=r"column 0 must have input_ids .*model\[0\].unpad_inputs = False"):
        inputs.column({"input_ids": torch.ones(1, 4), "cu_seq_lens_q": torch.tensor([0, 4])}, 0)


def test_a_teacher_with_a_prompt_is_refused(make_model: Model, make_teacher: Teacher) -> None:
    teacher = make_teacher()
    wrapped = teacher.preprocess
    teacher.preprocess = lambda inputs, **_: wrapped(inputs, prompt="the ")  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="has a prompt or a chat template"):
        PairInputs(make_model(), teacher)


def test_tokenizers_must_be_the_same(make_model: Model, make_teacher: Teacher) -> None:
    student, teacher = make_model(), make_teacher()
    check_tokenizers(student.tokenizer, teacher.tokenizer)
    other = copy.deepcopy(teacher.tokenizer)
    other.add_tokens(["zebra"])
    with pytest.raises(ValueError, match=r"different tokenizers: .*'zebra' is None in the student's and 58 in the"):
        check_tokenizers(student.tokenizer, other)
    with pytest.raises(ValueError, match="different special tokens: around a pair"):
        check_tokenizers(student.tokenizer, formatted(teacher, ROBERTA).tokenizer)
    with pytest.raises(ValueError, match="the student's tokenizer object must be a fast one"):
        check_tokenizers(object(), teacher.tokenizer)


def test_a_tokenizer_without_the_texts_in_order_is_refused(make_model: Model, make_teacher: Teacher) -> None:
    template = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $B [SEP] $A"}
    with pytest.raises(ValueError, match="does not contain the texts in their order"):
        check_tokenizers(*(formatted(model, template).tokenizer for model in (make_model(), make_teacher())))
