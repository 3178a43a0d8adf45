"""Weights are loaded whole or refused by name; nothing in a checkpoint is run."""

import argparse
import logging
import os
import pickle
import re

import pytest
import safetensors.torch
import timm
import torch
from small_models import BACKBONES
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mimexport.aliases import ALIASES, Alias
from mimexport.checkpoints import read_checkpoint
from mimexport.errors import WeightsError
from mimexport.heads import shipped_heads
from mimexport.loaded_model import tensors_sha256
from mimexport.loading import IMAGENET_PIXELS, load_any
from mimexport.weights import embedded_file, load_model
from mimruntime.errors import OptionError, UnknownNameError

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(autouse=True)
def small_aliases(monkeypatch):
    monkeypatch.setitem(ALIASES, "small", Alias("vit_tiny_patch16_224", 32, 8, 16, 48, "mit", kwargs=TINY))
    simmim = ALIASES["simmim-b16"].kwargs | TINY
    monkeypatch.setitem(ALIASES, "small-simmim", Alias("beit_base_patch16_224", 32, 8, 16, 48, "mit", kwargs=simmim))
    monkeypatch.setitem(
        ALIASES, "small-ijepa",
        Alias("vit_tiny_patch16_224", 32, 8, 16, 48, "mit",
              kwargs=TINY | {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    )  # fmt: skip


@pytest.fixture
def state():
    return load_model("small", random_seed=1).model.state_dict()


def save(path, content):
    torch.save(content, path)
    return path


def same_weights(loaded, state):
    return tensors_sha256(loaded.model.state_dict()) == tensors_sha256(state)


def test_safetensors_come_back_unchanged(tmp_path, state):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state, path)
    loaded = load_model("small", weights=path)
    assert same_weights(loaded, state)
    assert (loaded.source, loaded.origin, loaded.license) == ("file", "w.safetensors", "not stated")


def test_the_digest_does_not_depend_on_the_storage_precision(state):
    halves = {key: value.half() for key, value in state.items()}
    assert tensors_sha256(halves) == tensors_sha256({key: value.half().float() for key, value in state.items()})
    assert tensors_sha256(halves) != tensors_sha256(state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 7},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        # MAE's pretraining checkpoint: encoder, decoder and mask token side by side
        lambda state: {"model": state | {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 48)}},
        # beyond_cls: the backbone of MAE with a head of pooling, norm and classifier
        lambda state: {
            "model": state | {"head.0.attention_predictor.0.weight": torch.ones(1, 48), "head.2.bias": torch.ones(9)}
        },
    ],
    ids=["plain", "model", "state_dict with module prefix", "mae", "beyond_cls"],
)  # fmt: skip
def test_published_layouts_are_read(tmp_path, state, wrap):
    assert same_weights(load_model("small", weights=save(tmp_path / "w.pth", wrap(state))), state)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_model_of_every_class_comes_back_from_its_own_file(tmp_path, monkeypatch, name):
    monkeypatch.setitem(ALIASES, "shallow", Alias(name, 0, 0, 0, 0, "mit", kwargs=BACKBONES[name]))
    state = load_model("shallow", random_seed=1).model.state_dict()
    assert same_weights(load_model("shallow", weights=save(tmp_path / "w.pth", state)), state)


def test_hieras_layout_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(ALIASES, "shallow", Alias("hiera_tiny_224", 0, 0, 0, 0, "mit", kwargs={"stages": (1, 1, 1, 2)}))
    state = load_model("shallow", random_seed=1).model.state_dict()
    layout = {key.replace("head.norm.", "norm."): value for key, value in state.items()}
    layout |= {"head.projection.weight": torch.ones(3, 768), "mask_token": torch.ones(1, 1, 8)}
    assert same_weights(load_model("shallow", weights=save(tmp_path / "w.pth", {"model_state": layout})), state)


@pytest.mark.parametrize("name", ["simmim-b16", "mae-s16"])
def test_pixels_of_a_name_are_those_it_was_trained_on(name):
    config = load_model(name, random_seed=0).config
    assert (config["mean"], config["std"]) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def test_simmims_layout_is_read(tmp_path):
    state = load_model("small-simmim", random_seed=1).model.state_dict()
    layout = {f"encoder.{key}": value for key, value in state.items()} | {
        "encoder.mask_token": torch.ones(1, 1, 48),
        "encoder.rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.int64),
        "decoder.0.weight": torch.ones(8, 48, 1, 1),
    }
    assert same_weights(load_model("small-simmim", weights=save(tmp_path / "w.pth", {"model": layout})), state)


def test_ijepas_layout_is_read(tmp_path):
    state = load_model("small-ijepa", random_seed=1).model.state_dict()
    layout = {f"module.{key}": value for key, value in state.items()}
    content = {"encoder": layout, "predictor": {"module.predictor_embed.weight": torch.ones(3)}, "epoch": 3}
    assert same_weights(load_model("small-ijepa", weights=save(tmp_path / "w.pth.tar", content)), state)


def test_missing_and_unexpected_keys_are_named(tmp_path, state):
    state["blocks.0.extra"] = state.pop("blocks.0.norm1.weight")
    message = "missing 1 keys: blocks.0.norm1.weight; unexpected 1 keys: blocks.0.extra"
    with pytest.raises(WeightsError, match=message):
        load_model("small", weights=save(tmp_path / "w.pth", state))


def test_weights_of_another_width_are_refused(tmp_path, state):
    state["cls_token"] = torch.zeros(1, 1, 64)
    with pytest.raises(WeightsError, match=r"does not fit the architecture.*cls_token"):
        load_model("small", weights=save(tmp_path / "w.pth", state))


def test_nan_is_refused_with_its_place(tmp_path, state):
    state["norm.weight"][3] = float("nan")
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 keys: norm\.weight"):
        load_model("small", weights=save(tmp_path / "w.pth", state))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"model": Attack()}))
    with pytest.raises(WeightsError, match=r"refused|not a readable checkpoint"):
        load_model("small", weights=path)
    save(path, {"model": Attack()})
    with pytest.raises(WeightsError, match="holds more than tensors and is refused"):
        load_model("small", weights=path)
    assert not witness.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 5000])
def test_a_truncated_file_is_refused(tmp_path, state, suffix, kept):
    path = tmp_path / f"w{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="is not a readable checkpoint"):
        load_model("small", weights=path)


@pytest.mark.parametrize("raw", [b"\x80\x02junk", b"\x80\x02a", b"\x80\x02.", b"\x80\x02]q\x00(K\x01ee.", b"\x80"])
def test_a_malformed_checkpoint_is_named_as_one(raw, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(raw)
    with pytest.raises(
        WeightsError, match=r"model\.pth (is not a readable checkpoint, damaged or cut short: \w|holds more)"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>not found</html>", b"not found", b"version https://git"])
def test_what_came_in_place_of_a_checkpoint_is_told_from_a_pickle(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"w\.pth is not a (readable )?checkpoint(, damaged or cut short)?: "
    ) as caught:
        load_model("small", weights=tmp_path / "w.pth")
    assert not re.search(r": \d+$", str(caught.value))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=re.escape(f"no weights file at {tmp_path / 'none.pth'}")):
        load_model("small", weights=tmp_path / "none.pth")


def test_random_weights_are_the_same_for_a_seed_and_leave_no_parameter_constant():
    first, again, other = (load_model("small", random_seed=seed) for seed in (3, 3, 4))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.source == "random"
    assert all(parameter.std() > 0 for parameter in first.model.parameters())


def test_a_wrong_size_is_not_taken_for_a_hub_out_of_reach(monkeypatch):
    right = timm.create_model
    monkeypatch.setattr("mimexport.weights._check_hub", lambda *_: None)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **rest: right(name, **rest))
    with pytest.raises(OptionError, match="100"):
        load_model("dino-s16", size=100)


def test_a_hub_out_of_reach_is_one_line_with_two_ways_out(monkeypatch, caplog):
    def unreachable(*args, **kwargs):
        logging.getLogger("huggingface_hub").warning("retrying")
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr("mimexport.weights._check_hub", lambda *_: None)
    with pytest.raises(WeightsError) as caught:
        load_model("mae-b16")
    assert str(caught.value) == (
        "the weights of 'mae-b16' (timm/vit_base_patch16_224.mae) could not be downloaded (ConnectionError);"
        " give --weights FILE, or --random-weights for a test"
    )
    assert "retrying" not in caplog.text


def test_a_hub_out_of_reach_is_known_before_its_client_begins_to_retry(monkeypatch):
    asked = []

    def unreachable(url, timeout):
        asked.append((url, timeout))
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("the download began"))
    with pytest.raises(WeightsError, match=r"'mae-b16' \(timm/vit_base_patch16_224.mae\).*the hub cannot be reached"):
        load_model("mae-b16")
    assert [timeout for _, timeout in asked] == [5.0]


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda state: {"model": state, "args": argparse.Namespace(lr=1e-3, mask_ratio=0.75)}, None),
        (
            lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
            "prefix 'model.' was removed",
        ),
        (
            lambda state: {"state_dict": {f"module.backbone.{key}": value for key, value in state.items()}},
            "the prefix 'module.backbone.' was removed",
        ),
    ],
    ids=["options beside the tensors", "Lightning", "Lightning around a wrapper"],
)
def test_habits_of_training_code_are_read_and_said(tmp_path, state, wrap, note):
    loaded = load_model("small", weights=save(tmp_path / "w.pth", wrap(state)))
    assert same_weights(loaded, state)
    assert (note is None and not loaded.notes) or note in loaded.notes[0]


def test_a_norm_after_the_pool_is_loaded_as_that(tmp_path, state):
    pooled = {
        key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: value for key, value in state.items()
    }
    loaded = load_model(
        "small", weights=save(tmp_path / "w.pth", {"model": pooled | {"head.weight": torch.ones(9, 48)}})
    )
    assert torch.equal(loaded.model.fc_norm.weight, state["norm.weight"])
    assert "has its norm after the average pool" in loaded.notes[0]


def test_a_student_beside_a_teacher_is_not_guessed(tmp_path, state):
    both = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in state.items()}
    with pytest.raises(WeightsError, match=r"holds several encoders \('student\.', 'teacher\.'\)"):
        load_model("small", weights=save(tmp_path / "w.pth", {"state_dict": both}))


def test_a_checkpoint_of_another_image_size_is_said_to_be_resampled(tmp_path, state):
    loaded = load_model("small", weights=save(tmp_path / "w.pth", state), size=64)
    assert "17 positions were resampled to 65" in loaded.notes[0]


def test_pixels_of_a_file_are_timms_guess_unless_they_are_given(tmp_path, monkeypatch, state):
    path = save(tmp_path / "w.pth", state)
    guessed = load_any("small", weights=path)
    assert guessed.config["mean"] == (0.5, 0.5, 0.5)
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5 are timm's defaults" in guessed.notes[0]
    given = load_any("small", weights=path, pixels=IMAGENET_PIXELS, license="mine")
    assert (given.config["mean"], given.license, given.notes) == (IMAGENET_DEFAULT_MEAN, "mine", ())
    (note,) = load_any("mae-tiny").notes
    assert note.startswith("mae-tiny is a demonstration, trained on 100,000 images of 64 px")


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path):
    path = tmp_path / "w.pth"
    for content in (b"<html>404</html>", b"", b"\x80\x02}q\x00(X\x03", b"PK\x03\x04 not a zip"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"is not a (readable )?checkpoint"):
            load_model("small", weights=path)


def test_a_model_without_a_hub_says_how_to_bring_its_weights():
    with pytest.raises(WeightsError, match="no hub has weights for 'simmim-b16'; give --weights FILE"):
        load_model("simmim-b16")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mae-l61", "mae-l16"),
        ("vit_base_patch16_224.maee", r"vit_base_patch16_224\.mae"),
        ("vit_bse_patch16_224", "vit_base_patch16_224"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}'; did you mean .*{nearest}"):
        load_model(name, random_seed=0)


def test_another_input_size_resamples_the_position_table():
    loaded = load_model("mae-tiny", size=96)
    assert loaded.config["input_size"] == (3, 96, 96)
    assert loaded.model.pos_embed.shape == (1, 12 * 12 + 1, 192)


@pytest.mark.parametrize(("name", "size", "unit"), [("mae-tiny", 70, 8), ("mae-b16", 17, 16), ("hiera-mae-t", 100, 32)])
def test_a_size_that_the_patches_do_not_divide_is_refused(name, size, unit):
    with pytest.raises(OptionError, match=f"--image-size {size}: .* needs a multiple of {unit} px"):
        load_model(name, random_seed=0, size=size)


def test_embedded_weights_that_a_wheel_left_out_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("mimexport.weights._assets", lambda: tmp_path)
    with pytest.raises(
        WeightsError,
        match=r"'mae-tiny' are not in the wheel; download .*/assets/mae_tiny_\S+ from the source repository .*--weights FILE",
    ):
        load_model("mae-tiny")


def test_a_file_of_the_embedded_weights_gets_their_heads():
    path = embedded_file("mae-tiny")
    loaded = load_model("mae-tiny", weights=path)
    assert loaded.source == "file"
    assert "ep" in shipped_heads("mae-tiny", loaded.source, loaded.sha256)
    other = load_model("mae-tiny", random_seed=0)
    assert not shipped_heads("mae-tiny", other.source, other.sha256)


def test_embedded_weights_that_are_others_are_refused(tmp_path, monkeypatch):
    state = load_model("mae-tiny", random_seed=0).model.state_dict()
    safetensors.torch.save_file(state, tmp_path / ALIASES["mae-tiny"].embedded)
    monkeypatch.setattr("mimexport.weights._assets", lambda: tmp_path)
    with pytest.raises(WeightsError, match="has the wrong digest for 'mae-tiny'"):
        load_model("mae-tiny")
