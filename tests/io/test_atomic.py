import contextlib
import os
import subprocess
import sys
import threading

import pytest

from cmjax.io.atomic import atomic_file, atomic_folder, check_writable, recover_folder


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_file_appears_whole_with_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert names(tmp_path) == ["a.txt", "plain"]


def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def write():
        with atomic_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_is_replaced_and_its_other_files_stay(tmp_path):
    old = tmp_path / "model"
    (old / "unet").mkdir(parents=True)
    for name in ("a", "README.md", "unet/b", "unet/notes"):
        (old / name).write_text(f"old {name}")
    with atomic_folder(old) as folder:
        (folder / "unet").mkdir()
        (folder / "a").write_text("new a")
        (folder / "unet" / "b").write_text("new b")
    assert names(tmp_path) == ["model", "model/README.md", "model/a", "model/unet", "model/unet/b", "model/unet/notes"]
    assert [(old / n).read_text() for n in ("a", "README.md", "unet/b", "unet/notes")] == [
        "new a",
        "old README.md",
        "new b",
        "old unet/notes",
    ]


@pytest.mark.slow
def test_a_folder_whose_writer_was_killed_between_two_renames_comes_back(tmp_path):
    model = tmp_path / "model"
    program = (
        "import os, pathlib, sys; from cmjax.io.atomic import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as folder: (folder / 'a').write_text('old')\n"
        "rename, done = pathlib.Path.rename, []\n"
        "def killed(path, target):\n"
        "    if done: os._exit(9)\n"
        "    done.append(rename(path, target))\n"
        "with atomic_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'a').write_text('new')\n"
        "    pathlib.Path.rename = lambda path, target: None if not path.exists() else killed(path, target)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(model)], check=False)
    assert done.returncode == 9 and not model.exists()
    recover_folder(model)
    assert (model / "a").read_text() == "old" and not (tmp_path / ".model.old").exists()
    subprocess.run([sys.executable, "-c", program, str(model)], check=False)
    with atomic_folder(model) as folder:
        assert (model / "a").read_text() == "old"  # whoever writes next puts it back first
        (folder / "a").write_text("newest")
    assert (model / "a").read_text() == "newest" and not (tmp_path / ".model.old").exists()


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")

    def write():
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "a").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert names(tmp_path) == ["model", "model/a"]
    assert (tmp_path / "model" / "a").read_text() == "old"


@pytest.mark.slow
def test_a_killed_program_leaves_the_old_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    program = (
        "import os, sys; from cmjax.io.atomic import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'a').write_text('half')\n"
        "    os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "model")], check=False)
    assert done.returncode == 9
    assert names(tmp_path / "model") == ["a"]
    assert (tmp_path / "model" / "a").read_text() == "old"


def test_a_folder_is_seen_whole_or_for_a_moment_not_at_all(tmp_path):
    model, seen = tmp_path / "model", []

    def write(number):
        with atomic_folder(model) as folder:
            (folder / "a").write_text(str(number))

    write(0)
    stop = threading.Event()

    def look():
        while not stop.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.append((model / "a").read_text())
            recover_folder(model)  # which may come between the writer's two renames

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(100):
        write(number)
    stop.set()
    thread.join()
    assert seen and all(text in map(str, range(100)) for text in seen)
    assert (model / "a").read_text() == "99"
    assert names(tmp_path) == ["model", "model/a"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "f"):
        pass


def test_check_writable_says_why_and_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "a.png")
    check_writable(tmp_path)
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist"):
        check_writable(tmp_path / "missing" / "a.png")
    (tmp_path / "f").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        check_writable(tmp_path / "f" / "a.png")
    if os.path.isdir("/proc/self"):
        with pytest.raises(PermissionError, match=r"cannot write /proc/self/a\.png"):
            check_writable("/proc/self/a.png")


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with atomic_file(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_name_that_is_too_long_is_found_before_the_work(tmp_path):
    with pytest.raises(PermissionError, match="too long"):
        check_writable(tmp_path / ("a" * 250 + ".png"))
