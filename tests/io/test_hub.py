import fnmatch
import sys
import types

import pytest
import tiny

import cmjax
from cmjax.io import hub


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    for name in ("huggingface_hub", "huggingface_hub.errors"):  # another test may have imported it
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"owner/name is not a folder here.*pip install 'cmjax\[hub\]'"):
        cmjax.load("owner/name")


@pytest.fixture
def fake_hub(monkeypatch):
    """huggingface_hub as far as it is used here: one repository, and the errors that its real client raises."""
    module, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    for name in ("HfHubHTTPError", "LocalEntryNotFoundError", "RepositoryNotFoundError"):
        setattr(errors, name, type(name, (Exception,), {}))
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return module, errors


def test_a_hub_id_is_downloaded_and_loaded(fake_hub, tmp_path):
    checkpoint = tiny.checkpoint()
    cmjax.save(checkpoint, tmp_path / "snapshot")
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(tmp_path / "snapshot")

    fake_hub[0].snapshot_download = snapshot_download
    assert cmjax.load("owner/name", revision="v1").config == checkpoint.config
    assert asked == [("owner/name", "v1", hub.patterns())]
    with pytest.raises(FileNotFoundError, match="leave variant out"):
        cmjax.load("owner/name", variant="fp16")
    assert asked[1] == ("owner/name", None, hub.patterns("fp16"))


def test_of_a_repository_what_is_read_is_fetched_and_nothing_else():
    def fetched(name, variant):
        return any(fnmatch.fnmatch(name, pattern) for pattern in hub.patterns(variant))

    stem = "diffusion_pytorch_model"
    texts = ["model_index.json", "labels.json", "scheduler/scheduler_config.json", "unet/config.json", "config.json"]
    for at in ("", "unet/"):
        plain = [f"{at}{stem}.safetensors", f"{at}{stem}-00001-of-00002.safetensors"]
        half = [f"{at}{stem}.fp16.safetensors", f"{at}{stem}.fp16-00001-of-00002.safetensors"]
        index = [f"{at}{stem}.safetensors.index.json", f"{at}{stem}.safetensors.index.fp16.json"]
        assert all(fetched(name, None) and not fetched(name, "fp16") for name in plain)
        assert all(fetched(name, "fp16") and not fetched(name, None) for name in half)
        assert all(fetched(name, variant) for name in index + texts for variant in (None, "fp16"))
    for name in (f"vae/{stem}.safetensors", f"unet/{stem}.bin", "other.safetensors", "README.md"):
        assert not fetched(name, None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "the hub has no repository owner/name"),
        ("LocalEntryNotFoundError", r"could not be read: no network\. Without a network, give the path of a folder"),
        ("HfHubHTTPError", "the hub could not be read: no network"),
    ],
)
def test_the_hubs_refusals_are_file_errors(fake_hub, error, message):
    module, errors = fake_hub

    def snapshot_download(*args, **kwargs):
        raise getattr(errors, error)("Got: no network\nsecond line")

    module.snapshot_download = snapshot_download
    with pytest.raises(FileNotFoundError, match=message):
        cmjax.load("owner/name")


def test_a_path_is_no_hub_id():
    assert hub.is_repo_id("openai/diffusers-cd_imagenet64_l2")
    for name in ("mine", "./mine", "../a/b", "/a/b", "a/b/c", "a b/c", "checkpoints/"):
        assert not hub.is_repo_id(name)
    assert hub.is_repo_id("a/b") and hub.is_repo_id("a_/b_") and hub.is_repo_id("a.b/c-d")


@pytest.mark.parametrize("name", ["a--b/c", "a..b/c", "openai/x.git", "a/b-", "a./b", "ä/b", "a/é", f"a/{'b' * 100}"])
def test_names_that_the_hub_allows_nobody_are_not_asked_for(name, fake_hub):
    with pytest.raises(FileNotFoundError, match=r"nor a hub id \(owner/name\)"):
        cmjax.load(name)


def test_what_the_hubs_client_refuses_by_a_rule_of_its_own_is_a_file_error(fake_hub):
    def snapshot_download(*args, **kwargs):
        raise ValueError("Repo id must use such characters.")

    fake_hub[0].snapshot_download = snapshot_download
    with pytest.raises(FileNotFoundError, match=r"owner/name is not a folder here.*Repo id must"):
        cmjax.load("owner/name")


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("kind", ["httpx.ConnectError", "httpx.ReadTimeout", "ConnectionError", "OfflineModeIsEnabled"])
def test_without_a_network_the_files_are_those_of_the_cache(kind, is_cached, fake_hub, tmp_path, monkeypatch):
    module, errors = fake_hub
    errors.OfflineModeIsEnabled = type("OfflineModeIsEnabled", (ConnectionError,), {})
    httpx = types.ModuleType("httpx")
    httpx.TransportError = type("TransportError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "httpx", httpx)
    error = {"ConnectionError": ConnectionError, "OfflineModeIsEnabled": errors.OfflineModeIsEnabled}.get(
        kind, type(kind, (httpx.TransportError,), {})
    )

    def fails(*args, **kwargs):
        raise error("no network")

    def snapshot_download(repo_id, *, revision, local_files_only):
        if not is_cached:
            raise errors.LocalEntryNotFoundError("nothing cached; pass local_files_only=False")
        return str(tmp_path)

    (tmp_path / "a.safetensors").touch()
    module.HfApi = lambda: types.SimpleNamespace(list_repo_files=fails)
    module.snapshot_download, module.hf_hub_download = snapshot_download, fails
    if is_cached:
        assert hub.list_files("owner/name") == ["a.safetensors"]
    else:
        with pytest.raises(FileNotFoundError, match="the hub could not be read: no network"):
            hub.list_files("owner/name")
    with pytest.raises(FileNotFoundError, match="the hub could not be read: no network"):
        hub.download_file("owner/name", "a.safetensors")
