"""What observe() takes from timm's networks, against the networks' own parts and direct gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.bench.data.splits import Splits
from kdbench.bench.networks.attention import Products
from kdbench.bench.networks.build import build
from kdbench.bench.networks.network import Network
from kdbench.bench.networks.signals import observe
from kdbench.bench.spec import Compute, DataSpec, ModelSpec
from kdbench.bench.tasks import load
from kdbench.methods.base import SIGNALS, Signals, Unsupported

TINY = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
MODELS = {
    "vit": ModelSpec(name="vit_tiny_patch16_224", args=TINY),
    "vit of averages": ModelSpec(
        name="vit_tiny_patch16_224", args={**TINY, "global_pool": "avg", "class_token": False}
    ),
    "vit of normed queries": ModelSpec(name="vit_tiny_patch16_224", args={**TINY, "qk_norm": True}),
    "swin": ModelSpec(
        name="swin_tiny_patch4_window7_224", args={"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3)}
    ),
    "mixer": ModelSpec(name="mixer_s16_224"),
    "mobilenet": ModelSpec(name="mobilenetv3_small_050"),
    "cnn": ModelSpec(name="cifar_resnet8"),
    "repvit": ModelSpec(name="repvit_m0_9"),
}
VITS = [name for name in MODELS if name.startswith("vit")]
PLAIN = {
    **{name: MODELS[name] for name in VITS},
    "rotary, added bias": ModelSpec(name="eva02_tiny_patch14_224", args={**TINY, "img_size": 32}),
    "rotary, one projection each": ModelSpec(
        name="eva02_tiny_patch14_224", args={**TINY, "img_size": 32, "qkv_fused": False}
    ),
    "rotary": ModelSpec(name="vit_small_patch16_rope_224", args={**TINY, "img_size": 32}),
    "rotary for each head": ModelSpec(name="vit_small_patch16_rope_mixed_224", args={**TINY, "img_size": 32}),
    "pooled by attention": ModelSpec(
        name="vit_base_patch16_siglip_224", args={**TINY, "img_size": 32, "global_pool": "map", "class_token": False}
    ),
}
"""Chains of blocks whose attention is the softmax of queries times keys, and no more."""
EVERY = SIGNALS


@pytest.fixture(scope="module")
def digits32() -> Splits:
    spec = DataSpec(name="digits", image_size=32, train_fraction=0.1, validation=0.25)
    return load(spec, Path("/nonexistent"))


def network_of(model: ModelSpec, data: Splits) -> Network:
    """In evaluation mode, with weights that leave no part idle: timm starts some at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(model, data).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return network


@pytest.fixture(params=[name for name in MODELS if name != "repvit"])
def network(request: pytest.FixtureRequest, digits32: Splits) -> Network:
    return network_of(MODELS[request.param], digits32)


def batch(data: Splits, count: int = 6) -> tuple[Tensor, Tensor]:
    return data.train.inputs[:count] / 255, data.train.targets[:count]


def see(network: Network, data: Splits, *needs: str, **options: Any) -> Signals:
    return observe(network, *batch(data), frozenset(needs), **options)


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def classifier_of(network: Any) -> nn.Linear:
    head = network.model.get_classifier()
    assert isinstance(head, nn.Linear)
    return head


def attentions(network: Network) -> list[Any]:
    return [module for module in network.modules() if isinstance(getattr(module, "qkv", None), nn.Linear)]


def test_what_nobody_asked_for_is_none_and_logits_are_the_networks(network: Network, digits32: Splits) -> None:
    signals = see(network, digits32)
    assert all(getattr(signals, name) is None for name in EVERY)
    with torch.no_grad():
        assert torch.equal(signals.logits, network(batch(digits32)[0])) and not signals.logits.requires_grad


def test_classifier_of_the_pooled_output_gives_the_logits(network: Network, digits32: Splits) -> None:
    signals, head = see(network, digits32, "pooled", "classifier"), classifier_of(network)
    assert signals.pooled is not None and signals.classifier is not None
    assert signals.classifier.shape == (10, signals.pooled.shape[1])
    logits = signals.pooled @ signals.classifier.T + head.bias
    torch.testing.assert_close(logits, see(network, digits32).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, signals.logits, rtol=1e-4, atol=1e-5)
    assert signals.logits.std() > 0.01


@pytest.mark.parametrize("name", [*VITS, "mixer"])
def test_tokens_are_the_embedding_and_every_blocks_output_the_last_one_normed(name: str, digits32: Splits) -> None:
    network = network_of(MODELS[name], digits32)
    model: Any = network.model
    signals = see(network, digits32, "tokens")
    assert signals.tokens is not None and len(signals.tokens) == len(model.blocks) + 1
    assert len({tuple(tokens.shape) for tokens in signals.tokens}) == 1
    with torch.no_grad():
        outputs = [block(before) for block, before in zip(model.blocks, signals.tokens[:-1], strict=True)]
        outputs[-1] = model.norm(outputs[-1])
        logits = model.forward_head(signals.tokens[-1])
    for output, after in zip(outputs, signals.tokens[1:], strict=True):
        torch.testing.assert_close(output, after)
    torch.testing.assert_close(logits, signals.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_attention_recomputed_from_queries_keys_and_values_is_the_modules_own(name: str, digits32: Splits) -> None:
    network, outputs = network_of(PLAIN[name], digits32), []
    model: Any = network.model
    own = [block.attn for block in model.blocks]
    handles = [each.register_forward_hook(lambda _, __, output: outputs.append(output)) for each in own]
    signals = see(network, digits32, "qkv")
    for handle in handles:
        handle.remove()
    assert signals.qkv is not None and len(signals.qkv) == len(outputs) == 2
    for attention, (query, key, value), output in zip(own, signals.qkv, outputs, strict=True):
        assert query.shape == key.shape == value.shape and query.shape[:2] == (6, 2) and query.shape[3] == 12
        weights = (query @ key.transpose(-2, -1) / 12**0.5).softmax(dim=-1)
        mixed = attention.proj(attention.norm((weights @ value).transpose(1, 2).flatten(2)))
        torch.testing.assert_close(mixed, output, rtol=1e-4, atol=1e-5)


def test_rotation_matters_to_the_attention(digits32: Splits) -> None:
    network = network_of(PLAIN["rotary"], digits32)
    attention: Any = network.model.blocks[1].attn  # type: ignore[index, union-attr]
    projected: list[Tensor] = []
    handle = attention.qkv.register_forward_hook(lambda _, __, output: projected.append(output))
    signals = see(network, digits32, "qkv")
    handle.remove()
    assert signals.qkv is not None
    query, key, value = signals.qkv[1]
    before = projected[0].unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(value, before[2])
    first = attention.num_prefix_tokens
    for rotated, plain in ((query, before[0]), (key, before[1])):
        torch.testing.assert_close(rotated[:, :, :first], plain[:, :, :first])
        torch.testing.assert_close(rotated.norm(dim=-1), plain.norm(dim=-1))
        assert (rotated - plain)[:, :, first + 1 :].norm() > 0.1 * plain[:, :, first + 1 :].norm()


def test_attention_in_windows_is_recomputed_with_its_position_bias(digits32: Splits) -> None:
    network, outputs = network_of(MODELS["swin"], digits32), []
    first = attentions(network)[0]
    handle = first.register_forward_hook(lambda _, __, output: outputs.append(output))
    signals = see(network, digits32, "qkv")
    handle.remove()
    assert signals.qkv is not None and [each[0].shape[1] for each in signals.qkv] == [2, 2, 3, 3]
    query, key, value = signals.qkv[0]
    assert len(query) == len(outputs[0]) > 6  # windows, several an image
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5 + first._get_rel_pos_bias()
    mixed = first.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, outputs[0], rtol=1e-4, atol=1e-5)


def direct(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of each image's cross-entropy, one image at a time."""
    grads = []
    for image, label in zip(images, labels, strict=True):
        variable = image[None].clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(network(variable), label[None], reduction="sum"), variable)
        grads.append(grad)
    return torch.cat(grads)


@pytest.mark.parametrize("name", ["vit", "cnn", "mixer"])
def test_input_gradients_are_those_of_each_image_alone(name: str, digits32: Splits) -> None:
    network, (images, labels) = network_of(MODELS[name], digits32), batch(digits32)
    signals = see(network, digits32, "input_grad", "mirrored_grad")
    assert signals.input_grad is not None and signals.mirrored_grad is not None
    expected = direct(network, images.flip(-1), labels).flip(-1)
    torch.testing.assert_close(signals.input_grad, direct(network, images, labels), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(signals.mirrored_grad, expected, rtol=1e-3, atol=1e-5)
    assert (signals.mirrored_grad - signals.input_grad).abs().max() > 1e-3
    assert not signals.mirrored_grad.requires_grad and all(p.grad is None for p in network.parameters())


def test_mirrored_gradient_of_an_image_without_a_label_is_zero(digits32: Splits) -> None:
    network, (images, labels) = network_of(MODELS["cnn"], digits32), batch(digits32)
    soft = F.one_hot(labels, 10).float()
    soft[0] = 0
    hard = see(network, digits32, "mirrored_grad").mirrored_grad
    grad = observe(network, images, soft, frozenset({"mirrored_grad"})).mirrored_grad
    assert hard is not None and grad is not None
    assert not grad[0].any() and torch.allclose(grad[1:], hard[1:], atol=1e-6) and hard[0].any()


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_a_students_signals_can_be_differentiated_even_gradients(name: str, digits32: Splits) -> None:
    network = network_of(MODELS[name], digits32)
    needs = ("mirrored_grad", "pooled", "classifier", *(("tokens", "qkv") if name == "vit" else ()))
    signals = see(network, digits32, *needs, training=True)
    weights = [classifier_of(network).weight, next(network.model.parameters())]
    for need in (need for need in needs if need != "classifier"):
        value: Any = getattr(signals, need)
        while isinstance(value, tuple):
            value = value[0]
        found = torch.autograd.grad(value.square().sum(), weights, retain_graph=True, allow_unused=True)
        assert any(grad is not None and grad.abs().sum() > 0 for grad in found), need
    assert signals.classifier is weights[0]


def test_a_classifier_may_be_a_1x1_convolution_of_the_pooled_map(digits32: Splits) -> None:
    network: Any = network_of(ModelSpec(name="wrn_16_1"), digits32)
    head = network.model.get_classifier()
    assert isinstance(head, nn.Conv2d)
    signals = see(network, digits32, "pooled", "classifier")
    assert signals.pooled is not None and signals.pooled.shape == (6, 64)
    assert signals.classifier is not None and signals.classifier.shape == (10, 64)
    torch.testing.assert_close(signals.pooled @ signals.classifier.T + head.bias, signals.logits, rtol=1e-4, atol=1e-5)


REFUSALS = [
    ("cnn", ("tokens",), "CifarResNet is no chain of transformer blocks"),
    ("swin", ("tokens",), "SwinTransformer is no chain of transformer blocks"),
    ("mobilenet", ("tokens",), "MobileNetV3 has blocks of feature maps, not of tokens"),
    ("mixer", ("qkv",), "MlpMixer has no self-attention"),
    ("mixer", ("tokens", "qkv"), "MlpMixer has no self-attention"),
    ("cnn", ("qkv", "input_grad"), "CifarResNet has no self-attention"),
    ("repvit", ("classifier",), "RepVit has no linear classifier"),
]


@pytest.mark.parametrize(("name", "needs", "message"), REFUSALS)
def test_what_a_network_lacks_is_named_and_no_hook_stays(
    name: str, needs: tuple[str, ...], message: str, digits32: Splits
) -> None:
    network = network_of(MODELS[name], digits32)
    before = hooks(network)
    with pytest.raises(Unsupported, match=message):
        see(network, digits32, *needs)
    assert hooks(network) == before == 0
    assert torch.is_grad_enabled()


def test_hooks_are_gone_after_use_and_after_a_failing_forward_pass(digits32: Splits) -> None:
    network = network_of(MODELS["vit"], digits32)
    see(network, digits32, "tokens", "qkv")
    assert hooks(network) == 0
    with pytest.raises((RuntimeError, AssertionError)):
        observe(network, torch.zeros(2, 1, 30, 30), torch.zeros(2, dtype=torch.long), frozenset({"tokens", "qkv"}))
    assert hooks(network) == 0


@pytest.mark.parametrize("name", ["vit", "vit of normed queries", "cnn"])
def test_bf16_gives_signals_in_float32_near_those_of_fp32(name: str, digits32: Splits) -> None:
    network = network_of(MODELS[name], digits32)
    needs = EVERY - ({"tokens", "qkv"} if name == "cnn" else {"head_map"})
    exact = see(network, digits32, *needs)
    network.compute = Compute(precision="bf16")
    rough = see(network, digits32, *needs)
    for need in (*needs, "logits"):
        for right, value in zip(flat(getattr(exact, need)), flat(getattr(rough, need)), strict=True):
            assert value.dtype == torch.float32, need
            assert (value - right).norm() < 0.2 * right.norm(), need
    assert not torch.equal(exact.logits, rough.logits)


def flat(value: Any) -> list[Tensor]:
    """The tensors in a signal, without those that there are not."""
    return [each for item in value for each in flat(item)] if isinstance(value, tuple) else [value][value is None :]


def test_a_scale_of_its_own_is_part_of_the_queries() -> None:
    query, key, value = torch.randn(3, 2, 2, 5, 12, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    with Products(seen):
        output = F.scaled_dot_product_attention(query, key, value, scale=0.7)
        F.scaled_dot_product_attention(query=query, key=key, value=value)
    (scaled, same, _), (plain, _, _) = seen
    assert torch.equal(plain, query) and torch.equal(same, key)
    weights = (scaled @ same.transpose(-2, -1) / 12**0.5).softmax(dim=-1)
    torch.testing.assert_close(weights @ value, output)


OTHER_ATTENTION = [
    ("xcit_nano_12_p8_224", {"depth": 2}, "XCA does not relate tokens"),
    ("cait_xxs24_224", {"depth": 2, "patch_size": 4, "img_size": 32}, "TalkingHeadAttn does not relate tokens"),
    ("coat_tiny", {"img_size": 32}, "FactorAttnConvRelPosEnc does not relate tokens"),
    ("davit_tiny", {"depths": (1, 1, 1, 1)}, "ChannelAttention does not relate tokens"),
    ("swinv2_tiny_window8_256", {**MODELS["swin"].args, "window_size": 4}, "WindowAttention does not relate tokens"),
    ("mvitv2_tiny", {"img_size": 32}, "MultiScaleAttention does not relate tokens"),
    ("pvt_v2_b0", {}, "attention of 64 queries to 1 keys, as where keys are pooled"),
    ("nest_tiny", {"img_size": 32, "patch_size": 2}, r"does not lay queries out as \(B, heads, N, d\)"),
]


@pytest.mark.parametrize(("name", "args", "message"), OTHER_ATTENTION, ids=lambda value: str(value)[:12])
def test_attention_that_is_no_relation_between_all_tokens_is_refused(
    name: str, args: dict[str, Any], message: str, digits32: Splits
) -> None:
    network = build(ModelSpec(name=name, args=args), digits32).eval()
    with pytest.raises(Unsupported, match=message):
        see(network, digits32, "qkv")
    assert hooks(network) == 0


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        *(("cifar_resnet8", 1), ("wrn_16_1", 1), ("cifar_shufflenetv1", 1), ("cifar_mobilenetv2", 1), ("resnet10t", 1)),
        *(("regnetx_002", 1), ("cifar_vgg8", 0), ("cifar_msdnet", 0), ("convnext_atto", 0), ("mini_vit_3", 0)),
    ],
)
def test_a_bare_stem_is_told_from_a_first_stage(name: str, stem: int, digits32: Splits) -> None:
    network = build(ModelSpec(name=name), digits32).eval()
    assert see(network, digits32, "features").stem == stem
    assert see(network, digits32).stem == 0


def test_pooled_is_what_the_classifier_saw_with_its_dropout(digits32: Splits) -> None:
    network = build(ModelSpec(name="resnet10t", args={"drop_rate": 0.5}), digits32).train()
    signals = see(network, digits32, "pooled", "features", training=True)
    assert signals.pooled is not None
    torch.testing.assert_close(classifier_of(network)(signals.pooled), signals.logits)


PLACES = {
    "cifar_resnet8": (["bn1", "layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"], "relu"),
    "regnetx_002": (["stem.bn", "s1.b1.conv3.bn", "s2.b1.conv3.bn", "s3.b4.conv3.bn", "s4.b7.conv3.bn"], "relu"),
    "cifar_vgg8": ([f"stages.{i}.{2 if 0 < i < 4 else 1}" for i in range(5)], "relu"),
    "cifar_shufflenetv1": (["stages.0.1", "stages.1.3.bn3", "stages.2.7.bn3", "stages.3.3.bn3"], "relu"),
    "wrn_16_1": ([f"stages.{i}.blocks.0.norm1" for i in range(3)] + ["norm"], "norm"),
    "cifar_mobilenetv2": (["bn1", *(f"blocks.{i}.bn3" for i in ("1.1", "2.2", "4.2", "6.0"))], "linear"),
    "cifar_shufflenetv2": (["stages.0.1", "", "", ""], "linear"),
    "convnext_atto": (["", "", "", ""], "linear"),
}
"""The batch norm before each map, and how a stage ends: an activation, the next norm's activation, or neither."""


@pytest.mark.parametrize("name", PLACES)
def test_maps_before_activations_and_their_norms(name: str, digits32: Splits) -> None:
    network: Any = network_of(ModelSpec(name=name), digits32)
    norms, end = PLACES[name]
    seen = see(network, digits32, "features", "preactivations", "norms")
    assert seen.features and seen.preactivations and seen.norms and len(seen.norms) == len(norms)
    torch.testing.assert_close(seen.logits, see(network, digits32).logits, rtol=1e-4, atol=1e-5)
    for place, (feature, before, norm, wanted) in enumerate(
        zip(seen.features, seen.preactivations, seen.norms, norms, strict=True)
    ):
        module = network.model.get_submodule(wanted) if wanted else None
        if module is None:
            assert norm is None
        else:
            assert norm is not None and torch.equal(norm, torch.stack([module.weight, module.bias]))
        if end == "norm":
            batch_norm = nn.BatchNorm2d.forward(module, feature)
            torch.testing.assert_close(before, batch_norm, rtol=1e-4, atol=1e-5)
        elif end == "relu" or (place == 0 and wanted):
            torch.testing.assert_close(before.relu().clamp_max(6) if end == "linear" else before.relu(), feature)
            assert before.min() < 0
        else:
            assert torch.equal(before, feature)
    assert hooks(network) == 0


def test_a_student_is_taught_by_its_maps_before_activations(digits32: Splits) -> None:
    network = network_of(ModelSpec(name="cifar_resnet8"), digits32).train()
    seen = see(network, digits32, "features", "preactivations", training=True)
    assert seen.features and seen.preactivations and network.training and seen.stem == 1
    for before, after in zip(seen.preactivations, seen.features, strict=True):
        torch.testing.assert_close(before.relu(), after)
    seen.preactivations[-1].clamp_max(0).sum().backward()
    first = next(network.model.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0


@pytest.mark.parametrize("need", ["features", "preactivations", "norms"])
def test_a_network_without_stages_is_named(need: str, digits32: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = network_of(MODELS["cnn"], digits32)
    monkeypatch.delattr(type(network.model).__mro__[1], "forward_intermediates")
    with pytest.raises(Unsupported, match="CifarResNet has no stages that can be tapped"):
        see(network, digits32, need)


POOLED = {
    "cifar_resnet8": {},
    "wrn_16_1": {},
    "cifar_vgg8": {},
    "cifar_mobilenetv2": {},
    "cifar_shufflenetv1": {},
    "cifar_shufflenetv2": {},
    "resnet10t": {},
    "efficientnet_lite0": {},
    "swin_tiny_patch4_window7_224": MODELS["swin"].args,
    "mixer_s16_224": {},
    "vit_tiny_patch16_224": {**TINY, "global_pool": "avg", "class_token": False, "fc_norm": False},
}
"""Networks whose classifier takes the mean of a map."""
NOT_POOLED = {
    "vit_tiny_patch16_224": TINY,
    "convnext_atto": {},
    "mobilenetv3_small_050": {},
}


@pytest.mark.parametrize("name", POOLED)
def test_the_mean_of_the_head_map_is_what_the_classifier_sees(name: str, digits32: Splits) -> None:
    network = network_of(ModelSpec(name=name, args=POOLED[name]), digits32)
    seen = see(network, digits32, "head_map", "pooled", "classifier", "classifier_bias")
    assert seen.head_map is not None and seen.pooled is not None
    assert seen.classifier is not None and seen.classifier_bias is not None
    torch.testing.assert_close(seen.head_map.mean(dim=(2, 3)), seen.pooled, rtol=1e-3, atol=1e-4)
    logits = seen.head_map.mean(dim=(2, 3)) @ seen.classifier.T + seen.classifier_bias
    torch.testing.assert_close(logits, see(network, digits32).logits, rtol=1e-3, atol=1e-3)
    both = see(network, digits32, "head_map", "features")
    assert both.head_map is not None and torch.equal(both.head_map, seen.head_map)
    assert both.pooled is None and hooks(network) == 0 and "forward_head" not in vars(network.model)


@pytest.mark.parametrize("name", NOT_POOLED)
def test_a_classifier_of_something_else_has_no_head_map(name: str, digits32: Splits) -> None:
    network = network_of(ModelSpec(name=name, args=NOT_POOLED[name]), digits32)
    with pytest.raises(Unsupported, match=f"{type(network.model).__name__} has no head_map"):
        see(network, digits32, "head_map")
    assert hooks(network) == 0 and "forward_head" not in vars(network.model)


def test_a_classifier_without_a_bias_has_one_of_zeros(digits32: Splits) -> None:
    network: Any = network_of(MODELS["cnn"], digits32)
    network.model.fc.bias = None
    assert torch.equal(see(network, digits32, "classifier_bias").classifier_bias, torch.zeros(10))  # type: ignore[arg-type]
