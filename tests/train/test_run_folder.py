"""Which folder a run takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sparsekern.train.recipe import Recipe
from sparsekern.train.recipe_file import save_recipe
from sparsekern.train.run_folder import choose_folder, lock


def _begin(folder: Path, recipe: Recipe, finished: bool = False) -> None:
    folder.mkdir()
    save_recipe(recipe, folder / "recipe.yaml")
    if finished:
        (folder / "summary.json").write_text("{}")


def test_free(tiny: Callable[..., Recipe], tmp_path: Path):
    assert choose_folder(tiny(), tmp_path, None, False) == tmp_path / "digits-rigl"
    assert choose_folder(tiny(), tmp_path, "mine", False) == tmp_path / "mine"
    assert list(tmp_path.iterdir()) == []


def test_empty_folder_is_free(tiny: Callable[..., Recipe], tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".lock").touch()
    assert choose_folder(tiny(), tmp_path, "mine", False) == tmp_path / "mine"


def test_finished_runs_are_passed_over(tiny: Callable[..., Recipe], tmp_path: Path):
    _begin(tmp_path / "mine", tiny(), finished=True)
    assert choose_folder(tiny(), tmp_path, "mine", False) == tmp_path / "mine-2"
    _begin(tmp_path / "mine-2", tiny(), finished=True)
    assert choose_folder(tiny(), tmp_path, "mine", False) == tmp_path / "mine-3"


def test_unfinished_run_of_the_same_recipe_goes_on(tiny: Callable[..., Recipe], tmp_path: Path):
    _begin(tmp_path / "mine", tiny(), finished=True)
    _begin(tmp_path / "mine-2", tiny().with_small_dense_width(0.4))
    assert choose_folder(tiny(), tmp_path, "mine", False) == tmp_path / "mine-2"


@pytest.mark.parametrize("readable", [True, False])
def test_unfinished_run_of_another_recipe(
    tiny: Callable[..., Recipe], tmp_path: Path, readable: bool
):
    _begin(tmp_path / "mine", tiny("rigl", "epochs=3"))
    if not readable:
        (tmp_path / "mine" / "recipe.yaml").write_text("of: another version")
    with pytest.raises(ValueError) as error:
        choose_folder(tiny(), tmp_path, "mine", False)
    assert str(error.value) == (
        f"Expected the unfinished run in {tmp_path / 'mine'} to have the same recipe. Got another: "
        "give this run another --name, or start over with --fresh, which deletes that folder."
    )


@pytest.mark.parametrize("finished", [True, False])
def test_fresh_deletes_a_run(tiny: Callable[..., Recipe], tmp_path: Path, finished: bool):
    _begin(tmp_path / "mine", tiny("rigl", "epochs=3"), finished)
    assert choose_folder(tiny(), tmp_path, "mine", True) == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("fresh", [True, False])
def test_something_else_is_left_alone(tiny: Callable[..., Recipe], tmp_path: Path, fresh: bool):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError) as error:
        choose_folder(tiny(), tmp_path, "mine", fresh)
    assert str(error.value) == (
        f"Expected {tmp_path / 'mine'} to be the folder of a run. Got something without "
        "recipe.yaml: choose another one with --name or --runs."
    )
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_name_that_leaves_the_folder(tiny: Callable[..., Recipe], tmp_path: Path):
    with pytest.raises(ValueError, match="Expected --name to consist of letters, digits"):
        choose_folder(tiny(), tmp_path, "../mine", True)


def test_one_process_a_folder(tiny: Callable[..., Recipe], tmp_path: Path):
    folder = tmp_path / "mine"
    _begin(folder, tiny())
    with lock(folder):
        with pytest.raises(RuntimeError) as error, lock(folder):
            pass
        assert str(error.value) == (
            f"Expected {folder} to be free. Got another process that is training there."
        )
        with pytest.raises(RuntimeError):
            choose_folder(tiny(), tmp_path, "mine", True)
        assert (folder / "recipe.yaml").exists()
    with lock(folder):
        pass
