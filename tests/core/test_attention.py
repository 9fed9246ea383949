"""Captured queries and keys: exact where the model's own attentions tell, and the model unchanged by a bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)
from transformers.models.bert import modeling_bert
from transformers.models.bert.modeling_bert import BertPreTrainedModel

from st_plugins.core.attention import LayerAttention, capture_attention, supported_models

Factory = Callable[..., SentenceTransformer]

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
GROUPED = {**SHAPE, "num_key_value_heads": 1, "head_dim": 8}
CAUSAL = {"gemma", "gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3"}
SHAPES: dict[str, dict[str, Any]] = {
    "albert": {**SHAPE, "embedding_size": 8},
    "bert": SHAPE,
    "camembert": SHAPE,
    "distilbert": {
        "vocab_size": 60,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "max_position_embeddings": 40,
    },
    "electra": {**SHAPE, "embedding_size": 8},
    "ernie": SHAPE,
    "eurobert": GROUPED,
    "gemma": GROUPED,
    "gemma3_text": {**GROUPED, "query_pre_attn_scalar": 4},  # a scaling of its own
    "gpt2": {
        "vocab_size": 60,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 40,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "llama": GROUPED,
    "mistral": GROUPED,
    "mobilebert": {**SHAPE, "embedding_size": 16, "intra_bottleneck_size": 8, "true_hidden_size": 8},
    "modernbert": {**SHAPE, "num_hidden_layers": 4},  # the first and the last layer look further than the others
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "roberta": SHAPE,
    "xlm-roberta": SHAPE,
}
INPUTS = {
    "input_ids": torch.tensor([[2, 7, 9, 11, 30, 3], [2, 8, 12, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
}
TEXTS = ["a dog is eating", "the happy child is playing guitar in the park"]


def build(kind: str, implementation: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPES.get(kind, SHAPE))
    model = AutoModel.from_config(config, attn_implementation=implementation).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:  # fresh weights are so small that all attention is uniform
            nn.init.normal_(parameter, std=0.3 if kind == "mobilebert" else 0.5)
    return model


def run(model: Any, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    output: Tensor = model(**INPUTS)[0]
    return output


def implementations(model: nn.Module) -> list[Any]:
    return [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def refuses(
    model: nn.Module, match: str, call: Callable[[Any], Any] = lambda model: None, receive: Any = None
) -> None:
    """Check that a block, or a call inside it, fails with a message, and leaves the model as it was."""
    before = implementations(model), hooks(model)
    with pytest.raises(ValueError, match=match), capture_attention(model, receive):
        call(model)
    assert (implementations(model), hooks(model)) == before


def slow_maps(layer: LayerAttention, causal: bool) -> Tensor:
    """Return softmax(scaling * q . k) over the tokens that a row may see, in plain loops; other cells are 0."""
    batch, heads, tokens, width = layer.query.shape
    query, key = layer.query.double().tolist(), layer.key.double().tolist()
    maps = torch.zeros(batch, heads, tokens, tokens, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(tokens):
                columns = [j for j in range(tokens) if INPUTS["attention_mask"][b, j] and (not causal or j <= i)]
                scores = [
                    layer.scaling * sum(query[b][h][i][d] * key[b][h][j][d] for d in range(width)) for j in columns
                ]
                total = sum(math.exp(score) for score in scores)
                for j, score in zip(columns, scores, strict=True):
                    maps[b, h, i, j] = math.exp(score) / total
    return maps


def test_every_supported_type_has_a_model_here() -> None:
    assert set(supported_models()) == set(SHAPES) and list(supported_models()) == sorted(supported_models())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", supported_models())
def test_the_output_is_the_same_to_the_bit(kind: str, implementation: str) -> None:
    model = build(kind, implementation)
    for training in (False, True):
        model.train(training)
        plain = run(model)
        with capture_attention(model) as layers:
            captured = run(model)
        assert len(layers) == model.config.num_hidden_layers
        assert torch.equal(plain, captured) and torch.equal(plain, run(model))
    assert set(implementations(model)) == {implementation} and hooks(model) == 0


@pytest.mark.parametrize("kind", supported_models())
def test_maps_are_the_eager_attentions(kind: str) -> None:
    """The maps of a model that runs sdpa against the attentions of the same weights with eager attention."""
    model = build(kind)
    eager = AutoModel.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    expected_output = eager(**INPUTS, output_attentions=True)
    attentions = expected_output.attentions
    if kind == "modernbert" and not attentions:
        pytest.skip("this version of transformers returns no attentions of ModernBERT")
    real = INPUTS["attention_mask"].bool()
    output = model(**INPUTS).last_hidden_state
    if kind == "gpt2" and not torch.allclose(output[real], expected_output.last_hidden_state[real], atol=1e-3):
        pytest.skip("in this version of transformers GPT-2's own scaling is lost without eager attention")
    with capture_attention(model) as layers, torch.no_grad():
        model(**INPUTS)
    assert len(layers) == len(attentions) == model.config.num_hidden_layers
    for layer, expected in zip(layers, attentions, strict=True):
        assert layer.query.shape == layer.key.shape == (2, model.config.num_attention_heads, 6, layer.query.shape[3])
        maps = slow_maps(layer, kind in CAUSAL)
        assert maps[0].max() > 0.25  # of six tokens
        real = INPUTS["attention_mask"].bool()[:, None, :, None]
        torch.testing.assert_close(maps * real, expected.double() * real, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "albert", "modernbert", "llama"])
def test_gradients_reach_queries_and_keys(kind: str) -> None:
    model = build(kind)
    with capture_attention(model) as layers:
        run(model)
    assert layers[-1].query.requires_grad and layers[-1].key.requires_grad
    sum(
        (layer.query @ layer.key.transpose(2, 3) * layer.scaling).softmax(3).square().sum() for layer in layers
    ).backward()
    names = {
        "bert": ("query", "key"),
        "albert": ("query", "key"),
        "modernbert": ("Wqkv",),
        "llama": ("q_proj", "k_proj"),
    }
    for name in names[kind]:
        found = [p for path, p in model.named_parameters() if path.endswith(f"{name}.weight")]
        assert found and all(p.grad is not None and p.grad.abs().sum() > 0 for p in found)
    if kind == "bert":  # the values of the last layer are behind its scores
        assert model.encoder.layer[-1].attention.self.value.weight.grad is None


def test_student_and_teacher_in_one_step(make_model: Factory) -> None:
    student, teacher = make_model("bert").train(), build("modernbert")
    plain = run(teacher)
    received: list[int] = []
    with capture_attention(student) as layers:
        student(student.preprocess(TEXTS))
        with (
            capture_attention(teacher, lambda index, layer: received.append(index)) as teacher_layers,
            torch.no_grad(),
        ):
            assert torch.equal(run(teacher), plain)
        assert set(implementations(teacher)) == {"sdpa"}
        assert received == [0, 1, 2, 3] and teacher_layers == []
        assert len(layers) == 2 and layers[0].query.requires_grad
    assert set(implementations(student)) == {"sdpa"} and hooks(student) == hooks(teacher) == 0


def test_what_is_received_is_what_is_listed() -> None:
    model = build("llama")
    received: list[LayerAttention] = []
    with capture_attention(model, lambda index, layer: received.insert(index, layer)):
        run(model)
    with capture_attention(model) as layers:
        run(model)
    for ours, theirs in zip(received, layers, strict=True):
        assert torch.equal(ours.query, theirs.query) and torch.equal(ours.key, theirs.key)
        assert torch.equal(ours.key[:, 0], ours.key[:, 1])  # one group of keys for both heads


def test_blocks_for_the_same_model_each_get_all_layers() -> None:
    model = build("bert")
    with capture_attention(model) as outer:
        with capture_attention(model) as inner:
            run(model)
        assert len(inner) == len(outer) == 2
        assert outer[1].query is inner[1].query
        plain = outer[0].query
        run(model)  # the inner block is over, the outer goes on
        assert len(inner) == len(outer) == 2 and outer[0].query is not plain
    assert set(implementations(model)) == {"sdpa"}


def test_a_second_pass_starts_again() -> None:
    model = build("albert")
    indices: list[int] = []
    with capture_attention(model) as layers:
        run(model)
        first = layers[0].query
        model(inputs_embeds=torch.randn(3, 4, 8))  # this looks up no embeddings
        assert len(layers) == 2 and layers[0].query is not first and layers[0].query.shape[:3] == (3, 2, 4)
    with capture_attention(model, lambda index, _: indices.append(index)):
        run(model)
        run(model)
    assert indices == [0, 1, 0, 1]


def test_the_model_is_restored_after_exceptions() -> None:
    model = build("bert", "eager")
    with pytest.raises(ZeroDivisionError), capture_attention(model):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), capture_attention(model, lambda index, _: 1 // 0):  # type: ignore[arg-type]
        run(model)
    with pytest.raises(ZeroDivisionError), capture_attention(model), capture_attention(build("gpt2")):
        raise ZeroDivisionError
    assert set(implementations(model)) == {"eager"} and hooks(model) == 0
    with capture_attention(model) as layers:
        run(model)
    assert len(layers) == 2


def test_models_of_the_host_and_their_wrappers(make_model: Factory, tmp_path: Any) -> None:
    student = make_model("bert")
    config = BertConfig(**{**SHAPE, "vocab_size": len(student.tokenizer)}, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    student.tokenizer.save_pretrained(tmp_path)
    teacher = CrossEncoder(str(tmp_path), device="cpu")
    score = teacher.predict([TEXTS])
    with capture_attention(teacher) as layers:
        assert (teacher.predict([TEXTS]) == score).all()
    assert len(layers) == 2 and layers[0].query.shape[0] == 1
    embeddings = student.encode(TEXTS)
    with capture_attention(student) as layers:
        assert (student.encode(TEXTS) == embeddings).all()
        student.encode(TEXTS[:1])
    assert len(layers) == 2 and layers[0].query.shape[0] == 1
    wrapper = nn.Module()  # as DistributedDataParallel holds its model
    wrapper.module = student
    with capture_attention(wrapper) as layers:
        student[0](student.preprocess(TEXTS))  # type: ignore[operator]
    assert len(layers) == 2
    refuses(nn.DataParallel(student), r"wrapped in DataParallel .* torchrun")


@pytest.mark.slow
def test_compiled_models() -> None:
    model = build("bert")
    with capture_attention(model) as layers:
        run(model)
    compiled: Any = torch.compile(build("bert"), backend="eager")
    for _ in range(2):
        with capture_attention(compiled) as again:
            run(compiled)
        for ours, theirs in zip(layers, again, strict=True):
            torch.testing.assert_close(ours.query, theirs.query)
            assert theirs.query.requires_grad


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_gradient_checkpointing(kind: str, backward_inside: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(kind).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        with ExitStack() as stack:
            layers = stack.enter_context(capture_attention(model))
            output = run(model)
            loss = output.square().sum() + sum((layer.query * layer.key).square().sum() for layer in layers)
            if not backward_inside:
                stack.close()
            loss.backward()
            assert len(layers) == 2
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_gradient_checkpointing_that_loses_gradients_is_refused() -> None:
    model = build("bert").train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": True})
    refuses(model, r"reentrant form loses the gradients.*use_reentrant", run)
    enable({"use_reentrant": False})
    refuses(model, "receive cannot be called inside a layer", run, lambda index, layer: None)
    received: list[int] = []
    with capture_attention(model, lambda index, layer: received.append(index)), torch.no_grad():
        run(model)
    assert received == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3"])
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    model = build(kind).to(dtype)
    plain = run(model)
    with capture_attention(model) as layers:
        assert torch.equal(run(model), plain)
    assert layers[0].query.dtype == layers[0].key.dtype == dtype


@pytest.mark.parametrize("masks", [True, False])
def test_the_wrapped_attention_sees_what_it_saw(masks: bool) -> None:
    """As flash attention, it may read its name from the configuration; its masks have their own form, or are none."""
    seen: list[tuple[str, Any]] = []

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen.append((module.config._attn_implementation, None if mask is None else mask.tolist()))
        return value.transpose(1, 2).contiguous(), None

    name = f"probe_{masks}"
    AttentionInterface.register(name, attend)
    if masks:
        AttentionMaskInterface.register(name, lambda attention_mask, **kwargs: attention_mask[:, None, None] * 5.0)
    model = build("bert", name)
    plain = run(model)
    with capture_attention(model):
        assert torch.equal(run(model), plain)
    assert len(seen) == 4 and seen[:2] == seen[2:] and seen[0][0] == name
    assert (seen[0][1] is not None) is masks


def uniform_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    return value.mean(dim=2, keepdim=True).expand_as(value).transpose(1, 2), None


class UnusualAttention(modeling_bert.BertSelfAttention):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        name = self.config._attn_implementation
        heads = hidden_states.unflatten(2, (2, 8)).transpose(1, 2)
        attend = AttentionInterface().get_interface(name, uniform_attention)
        output, _ = attend(self, heads, heads, heads, None)
        return output.flatten(2), None


def test_attention_with_an_eager_form_of_another_name() -> None:
    for implementation in ("sdpa", "eager"):
        model = build("bert", implementation)
        for layer in model.encoder.layer:
            layer.attention.self.__class__ = UnusualAttention
        if implementation == "eager":
            refuses(model, 'UnusualAttention hides its eager attention; load it with attn_implementation="sdpa"', run)
        else:
            plain = run(model)
            with capture_attention(model) as layers:
                assert torch.equal(run(model), plain)
            assert layers[0].scaling == 8**-0.5  # what sdpa takes where the model says nothing


class TwoTowers(BertPreTrainedModel):
    _supports_attention_backend = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        other = copy.deepcopy(config)
        self.first = BertModel(config)
        self.second = BertModel._from_config(other, attn_implementation="eager")
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.first.get_input_embeddings()

    def forward(self, **features: Tensor) -> Any:
        return self.first(**features), self.second(**features)


def test_parts_with_their_own_configuration_get_their_own_attention_back() -> None:
    model = TwoTowers._from_config(BertConfig(**SHAPE), attn_implementation="sdpa")
    before = implementations(model)
    assert set(before) == {"sdpa", "eager"}
    with capture_attention(model) as layers:
        model(**INPUTS)
    assert len(layers) == 4 and implementations(model) == before


@pytest.mark.parametrize(
    ("kind", "name"),
    [("mpnet", "MPNetModel"), ("deberta-v2", "DebertaV2Model"), ("xlnet", "XLNetModel"), ("t5", "T5")],
)
def test_encoders_without_the_interface_are_refused(make_model: Factory, kind: str, name: str) -> None:
    model = make_model(kind)
    refuses(model, rf"{name}.*does not use transformers' attention interface.*albert, bert, camembert")


def test_scores_with_more_than_queries_and_keys_are_refused() -> None:
    model = AutoModel.from_config(AutoConfig.for_model("gemma2", **GROUPED), attn_implementation="eager")
    refuses(model, r"Gemma2Attention adds softcap to its scores.*albert, bert", run)


def test_inputs_without_padding_are_refused() -> None:
    model = build("bert")
    refuses(
        model,
        r"flattened without padding.*unpad_inputs = False",
        lambda model: model(**INPUTS, cu_seq_lens_q=torch.tensor([0, 6, 10])),
    )


def test_there_must_be_one_transformer(make_model: Factory) -> None:
    refuses(nn.Linear(2, 2), "must contain one transformers model, but Linear has 0")
    both = nn.ModuleList([make_model("bert"), make_model("roberta")])
    refuses(both, "but ModuleList has 2; give capture_attention the one")
    with capture_attention(nn.ModuleList([both[0], both[0]])) as layers:  # the same one twice
        both[0](both[0].preprocess(TEXTS))
    assert len(layers) == 2


def test_a_changed_host_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this module knows of transformers and torch beyond their documentation."""
    model = build("bert")
    attention = model.encoder.layer[0].attention.self
    assert attention.config is model.config and model.config._attn_implementation == "sdpa"
    model.config._attn_implementation = {"": "eager"}
    assert model.config._attn_implementation == "eager"
    names = type(attention).forward.__globals__
    assert callable(names["eager_attention_forward"]) and "sdpa" in names["ALL_ATTENTION_FUNCTIONS"]
    assert torch._C._current_graph_task_id() == -1
    inside: list[int] = []
    weight = torch.ones(1, requires_grad=True)
    weight.register_hook(lambda gradient: inside.append(torch._C._current_graph_task_id()))  # type: ignore[no-untyped-call]
    weight.sum().backward()
    assert inside and inside[0] != -1

    class Bypass:
        def get_interface(self, name: str, default: Any) -> Any:
            return AttentionInterface()["sdpa"]

    model = build("bert")
    monkeypatch.setattr(modeling_bert, "ALL_ATTENTION_FUNCTIONS", Bypass())
    refuses(model, "BertModel ran without calling the attention function registered", run)
