"""The opened backbone gives what timm gives, whole or row by row."""

import pytest
import timm
import torch
from small_models import SMALL_MODELS, images_for, make_small, opened, timm_tokens
from torch import nn

from mimexport.backbone import Backbone
from mimexport.blocks import ClosedBlock, OpenBlock, _after, _linear, _plain, open_block
from mimexport.features import ComputedFeatures
from mimruntime.errors import OptionError

EXACT = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(params=SMALL_MODELS, ids=lambda name: name.replace(" ", "-"))
def small_model(request):
    return make_small(request.param)


def test_every_patch_token_equals_timms(small_model):
    images = images_for(small_model)
    _, expected = timm_tokens(small_model, images)
    backbone, tokens = opened(small_model, images)
    assert isinstance(backbone.last_block, OpenBlock)
    torch.testing.assert_close(ComputedFeatures(backbone, tokens, None).patches, expected, **EXACT)


def test_chosen_rows_equal_those_of_the_full_block(small_model):
    images = images_for(small_model)
    backbone, tokens = opened(small_model, images)
    index = torch.stack([torch.randperm(backbone.shape.patches)[:3] for _ in images])
    chosen = ComputedFeatures(backbone, tokens, None).rows(index)
    full = ComputedFeatures(backbone, tokens, None).patches
    torch.testing.assert_close(chosen, full.gather(1, index[..., None].expand(-1, -1, full.shape[-1])), **EXACT)


def test_rows_may_be_the_same_for_every_image(small_model):
    backbone, tokens = opened(small_model, images_for(small_model))
    features = ComputedFeatures(backbone, tokens, None)
    index = torch.randperm(backbone.shape.patches)[:5]
    torch.testing.assert_close(features.rows(index), features.patches[:, index], **EXACT)
    torch.testing.assert_close(features.mean_of(index), features.patches[:, index].mean(1), **EXACT)


def test_the_mean_of_rows_is_that_of_the_rows(small_model):
    images = images_for(small_model)
    backbone, tokens = opened(small_model, images)
    index = torch.stack([torch.randperm(backbone.shape.patches)[:5] for _ in images])
    for norm in (None, nn.LayerNorm(backbone.shape.dim)):
        features = ComputedFeatures(backbone, tokens, norm)
        torch.testing.assert_close(features.mean_of(index), features.rows(index).mean(1), **EXACT)
        torch.testing.assert_close(features.mean_of(None), features.patches.mean(1), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mean_is_as_good_in_few_digits_as_that_of_the_rows(dtype):
    model = make_small("vit")
    backbone, tokens = opened(model, images_for(model))
    index = torch.arange(backbone.shape.patches).expand(len(tokens), -1)
    exact = ComputedFeatures(backbone, tokens, None).mean_of(index)
    backbone.to(dtype)
    features = ComputedFeatures(backbone, tokens.to(dtype), None)
    assert features.mean_of(index).dtype == torch.float32
    worst = [float((mean - exact).norm()) for mean in (features.mean_of(index), features.rows(index).mean(1))]
    assert worst[0] < 1.5 * worst[1]


def test_cls_alone_equals_timms(small_model):
    images = images_for(small_model)
    prefix, _ = timm_tokens(small_model, images)
    backbone, tokens = opened(small_model, images)
    assert backbone.shape.has_cls == (prefix is not None)
    if prefix is None:
        pytest.skip("this backbone has no [cls]")
    torch.testing.assert_close(ComputedFeatures(backbone, tokens, None).cls, prefix[:, 0], **EXACT)


def test_cls_attention_equals_what_timm_computes(small_model):
    attn = small_model.blocks[-1].attn
    if not hasattr(attn, "attn_drop") or getattr(small_model, "cls_token", None) is None:
        pytest.skip("no [cls], or no place to look into timm's attention")
    images, seen = images_for(small_model), []
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output))
    timm_tokens(small_model, images)
    backbone, tokens = opened(small_model, images)
    expected = seen[-1][:, :, 0, backbone.shape.prefix :]
    weights = ComputedFeatures(backbone, tokens, None).cls_attention
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True), **EXACT)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_the_final_norm_is_applied_per_token_or_kept_for_after_the_pool(small_model):
    backbone = Backbone(small_model)
    assert (backbone.norm is None) != (backbone.pool_norm is None)


def test_a_class_that_is_not_supported_is_named():
    with pytest.raises(
        OptionError, match="ResNet is not a supported backbone class; supported: VisionTransformer, Eva"
    ):
        Backbone(timm.create_model("resnet18", num_classes=0))


def test_a_block_of_another_kind_is_computed_whole_and_gives_the_same_rows():
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        num_classes=0,
        depth=2,
        block_fn=timm.models.vision_transformer.ParallelThingsBlock,
    ).eval()
    images = images_for(model)
    _, expected = timm_tokens(model, images)
    backbone, tokens = opened(model, images)
    assert isinstance(backbone.last_block, ClosedBlock)
    torch.testing.assert_close(ComputedFeatures(backbone, tokens, None).patches, expected, **EXACT)
    with pytest.raises(OptionError, match="does not expose its attention"):
        _ = ComputedFeatures(backbone, tokens, None).cls_attention


def test_a_block_of_another_kind_is_refused_where_it_would_have_to_be_told_the_positions():
    block = timm.models.vision_transformer.ParallelThingsBlock(64, 2)
    with pytest.raises(OptionError, match="ParallelThingsBlock are not supported with relative positions"):
        open_block(block, rope=torch.zeros(4, 1, 64))


def test_norms_before_products_have_no_scale_or_shift_of_their_own(small_model):
    blocks = [*Backbone(small_model).modules()]
    opened_blocks = [block for block in blocks if isinstance(block, OpenBlock) and not block.post_norm]
    for block in opened_blocks:
        for norm in (block.norm1, block.norm2):
            assert (norm.weight == 1).all()
            assert getattr(norm, "bias", None) is None or (norm.bias == 0).all()


def test_a_product_after_a_norm_takes_the_norm_in_where_either_lacks_a_part():
    x, weight = torch.randn(4, 6), torch.randn(3, 6)
    for norm in (
        nn.LayerNorm(6),
        nn.LayerNorm(6, bias=False),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.RMSNorm(6),
    ):
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        for bias in (None, torch.randn(3)):
            got = _after(norm, _linear(weight, bias))(_plain(norm)(x))
            torch.testing.assert_close(got, nn.functional.linear(norm(x), weight, bias), **EXACT)


def test_patches_that_do_not_overlap_are_embedded_by_one_product(small_model):
    overlap = type(small_model).__name__ == "Hiera"
    convolutions = [part for part in Backbone(small_model).modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == overlap


def test_in_half_precision_the_tail_stays_in_float32(small_model):
    images = images_for(small_model).half()
    backbone = Backbone(small_model).half()
    with torch.no_grad():
        features = ComputedFeatures(backbone, backbone(images), None)
        assert features.entering.dtype == features.patches.dtype == torch.float32
