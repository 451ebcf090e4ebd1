"""Every way to name an architecture, and every way that a factory can fail, as one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compress_cli.checkpoint import Architecture, build, parse_architecture
from compress_cli.checkpoint.architecture import build_uninitialised
from compress_cli.errors import CompressError, InputError, UsageError
from tests.compress_cli.checkpoint.checkpoint_files import refusal, write_net


def refused(reference: str, *args: str, search_from: Path | None = None) -> str:
    with pytest.raises(CompressError) as caught:
        build(parse_architecture(reference, args), search_from=search_from)
    assert caught.value.fix
    return refusal(caught.value)


@pytest.mark.parametrize("name", ["make", "Net", "instance"])
def test_a_file_may_offer_a_function_a_class_or_a_module(tmp_path: Path, name: str) -> None:
    net = build(parse_architecture(f"{write_net(tmp_path)}:{name}"))
    assert net.state_dict()["fc.weight"].shape == (2, 4)


def test_a_module_in_the_current_folder_by_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_window").mkdir()
    write_net(tmp_path / "shop_window")
    monkeypatch.chdir(tmp_path)
    assert build(parse_architecture("shop_window.net:make", ["classes=7"])).state_dict()["fc.bias"].shape == (7,)


def test_a_relative_file_is_found_beside_and_above_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_net(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert build(Architecture("net.py:make"), search_from=tmp_path / "runs" / "one").fc.out_features == 2


def test_a_shared_module_object_is_not_handed_out_itself(tmp_path: Path) -> None:
    reference = Architecture(f"{write_net(tmp_path)}:instance")
    first, second = build(reference), build(reference)
    assert first is not second
    with torch.no_grad():
        first.fc.weight.zero_()
    assert second.fc.weight.abs().sum() > 0


def test_what_a_factory_prints_stays_off_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(parse_architecture(f"{write_net(tmp_path)}:make"))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a factory that prints" in printed.err


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["num_classes=10"], {"num_classes": 10}),
        (["a=1,b=2"], {"a": 1, "b": 2}),
        (["a=[1,2]", "b=(3, 4)"], {"a": [1, 2], "b": (3, 4)}),
        (["act='x,y'"], {"act": "x,y"}),
        (["flag=true", "other=False", "nothing=none"], {"flag": True, "other": False, "nothing": None}),
        (["name=resnet", "ratio=0.5"], {"name": "resnet", "ratio": 0.5}),
    ],
    ids=["number", "two in one", "sequences", "quoted comma", "words", "text and float"],
)
def test_arguments_are_python_literals_or_text(words: list[str], values: dict[str, object]) -> None:
    assert dict(parse_architecture("a:b", words).args) == values


@pytest.mark.parametrize("word", ["num_classes", "=3", "2x=3", "a b=1"])
def test_arguments_without_a_name_are_usage_errors(word: str) -> None:
    with pytest.raises(UsageError, match="is not NAME=VALUE"):
        parse_architecture("a:b", [word])


@pytest.mark.parametrize("reference", ["resnet18", "net.py", "net.py:", ":make", ""])
def test_a_reference_names_source_and_builder(reference: str) -> None:
    with pytest.raises(UsageError, match="names no builder"):
        parse_architecture(reference)


def test_a_bare_torchvision_name_is_completed() -> None:
    with pytest.raises(UsageError) as caught:
        parse_architecture("resnet18")
    assert "did you mean torchvision:resnet18?" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("mak", [], "did you mean"),
        ("needs", [], "needs() missing 1 required positional argument: 'classes' | its arguments: (classes)"),
        ("make", ["colour=3"], "got an unexpected keyword argument 'colour'"),
        ("fails", [], "raised ValueError: the paint is wet (net.py, line "),
        ("number", [], "returned a int, not an nn.Module"),
        ("leaves", [], "raised SystemExit: 3"),
        ("downloads", [], "tried to download something and could not: URLError"),
    ],
)
def test_a_factory_that_fails_says_how(tmp_path: Path, name: str, args: list[str], says: str) -> None:
    assert says in refused(f"{write_net(tmp_path)}:{name}", *args)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(:\n", "has a syntax error: invalid syntax"),
        (
            "import no_such_module_at_all\n",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_at_all'",
        ),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero (broken.py, line 1)"),
        ("raise SystemExit('usage')\n", "if __name__ == '__main__':"),
    ],
    ids=["syntax", "import", "error", "script"],
)
def test_a_file_that_cannot_be_imported_says_where(tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "broken.py").write_text(source, encoding="utf-8")
    assert says in refused(f"{tmp_path / 'broken.py'}:f")


def test_missing_files_and_modules(tmp_path: Path) -> None:
    assert "nosuch.py does not exist (looked in" in refused("nosuch.py:f", search_from=tmp_path)
    assert "there is no module 'nosuch'" in refused("nosuch.net:f")


def test_unknown_library_names_suggest_close_ones() -> None:
    assert "did you mean torchvision:resnet18, " in refused("torchvision:resnet17")
    pytest.importorskip("timm")
    assert "timm:resnet10t" in refused("timm:resnet10")


def test_torchvision_and_timm_builders_take_arguments() -> None:
    net = build(parse_architecture("torchvision:mobilenet_v3_small", ["num_classes=4"]), meta=True)
    assert net.state_dict()["classifier.3.weight"].shape == (4, 1024)
    pytest.importorskip("timm")
    net = build(parse_architecture("timm:resnet10t", ["num_classes=3"]), meta=True)
    assert net.state_dict()["fc.weight"].shape == (3, 512)


@pytest.mark.parametrize("name", ["vit_h_14", "regnet_y_128gf", "retinanet_resnet50_fpn"])
def test_meta_builds_allocate_no_weights(name: str) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    net = build(Architecture(f"torchvision:{name}"), meta=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    size = sum(parameter.numel() * 4 for parameter in net.parameters())
    assert all(parameter.is_meta for parameter in net.parameters())
    assert grown < size / 2  # 2.5 GB for ViT-H/14 and RegNetY-128GF


def test_uninitialised_builds_have_memory_and_real_buffers() -> None:
    net = build_uninitialised(Architecture("torchvision:swin_t"))
    assert not any(tensor.is_meta for tensor in net.state_dict().values())
    index = net.state_dict()["features.1.0.attn.relative_position_index"]
    assert torch.equal(
        index, build(Architecture("torchvision:swin_t")).state_dict()["features.1.0.attn.relative_position_index"]
    )


def test_registering_parameters_is_back_to_normal_after_a_meta_build() -> None:
    register = nn.Module.register_parameter
    build_uninitialised(Architecture("torchvision:squeezenet1_1"))
    with pytest.raises(InputError):
        build_uninitialised(Architecture("torchvision:resnet18", (("colour", 1),)))
    assert nn.Module.register_parameter is register
    assert not nn.Linear(2, 2).weight.is_meta


def test_architectures_go_through_json() -> None:
    architecture = Architecture("torchvision:resnet18", (("num_classes", 10),))
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    assert str(architecture) == "torchvision:resnet18 num_classes=10"
